# SPDX-License-Identifier: MIT
"""Call a function for each of many items, in as many threads as there are processors.

The GIL is released while the kernel walks a table: two threads on two processors get through namespaces almost twice as
fast as one.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident

from ..kernel.threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

_WAIT_SECONDS = 0.1  # a wake-up that an interrupt has swallowed is noticed after so long


_workers: set[int] = set()  # the threads that were made here


def is_worker() -> bool:
    """Whether the calling thread was made by `in_parallel`: it may then go from namespace to namespace."""
    return get_ident() in _workers


def in_parallel(
    function: Callable[[T], object],
    items: Iterable[T],
    stop: Callable[[str], object] | None = None,
    *,
    while_waiting: Callable[[], object] = lambda: None,
    one_by_one: bool = False,
) -> None:
    """Call the function for each item, in order, and return when all calls have.

    After the first exception (an interrupt is one) no further item is begun; `stop` is called with the reason, calls
    that are under way are waited for, and the exception is raised. `while_waiting` is called now and then by the thread
    that waits, and may raise. With one item or one processor, or `one_by_one`, no thread is made.
    """
    todo = list(items)[::-1]
    threads = 1 if one_by_one else min(len(todo), _processors())
    errors: list[BaseException] = []

    def fail(error: BaseException) -> None:
        errors.append(error)
        if stop is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            stop("interrupted" if interrupted else f"an error ended the run elsewhere: {error}")

    def work() -> None:
        while not errors:
            try:
                item = todo.pop()
            except IndexError:
                return
            try:
                function(item)
            except BaseException as error:
                fail(error)

    if threads <= 1:
        work()
    else:
        _run_threads(work, threads, fail, while_waiting)
    if errors:
        raise errors[0]


def _processors() -> int:
    """Those that this process may use; all of them where Python cannot tell (PyPy)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_threads(
    work: Callable[[], None], count: int, fail: Callable[[BaseException], None], while_waiting: Callable[[], object]
) -> None:
    """Run `work` in so many threads and wait for their end. An interrupt fails the run, and does not end the wait."""
    begun: list[None] = []
    ended: list[None] = []
    wake = allocate_lock()
    wake.acquire()

    def run() -> None:
        begun.append(None)
        _workers.add(get_ident())
        try:
            work()
        finally:
            _workers.discard(get_ident())
            ended.append(None)
            try:  # noqa: SIM105 - contextlib takes a while to import
                wake.release()
            except RuntimeError:
                pass  # another thread that has just ended did so

    def wait(threads: list[None]) -> None:
        while len(ended) < len(threads):
            wake.acquire(timeout=_WAIT_SECONDS)
            if not failed:
                while_waiting()

    failed = False
    try:
        for _ in range(count):
            start_thread(run)
        wait([None] * count)
        return
    except BaseException as error:
        failed = True
        fail(error)
    while True:
        try:
            wait(begun)  # a thread that begins later finds the error, and has nothing to do
            return
        except BaseException:  # of a signal's handler
            continue
