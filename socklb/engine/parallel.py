# SPDX-License-Identifier: MIT
"""Do something for each of many things, in as many threads as there are processors.

The GIL is free while the kernel walks a table: two threads on two processors get through namespaces almost twice as
fast as one.
"""

from __future__ import annotations

import errno
import os

from ..errors import KernelError
from ..kernel.namespaces import let_this_thread_move

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Event, Thread
    from typing import TypeVar

    T = TypeVar("T")


def in_parallel(
    function: Callable[[T], object], items: Iterable[T], stop: Callable[[str], object] | None = None
) -> None:
    """Call the function for each item, in order, and return when all are done.

    The first exception, an interrupt among them, lets no further item begin; `stop` is told why, those that are at
    work are waited for, and the exception is raised. With one item, or one processor, no thread is made.
    """
    todo = list(items)[::-1]
    threads = min(len(todo), len(os.sched_getaffinity(0)))
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
        _run_threads(work, threads, fail)
    if errors:
        raise errors[0]


def _run_threads(work: Callable[[], None], count: int, fail: Callable[[BaseException], None]) -> None:
    """They are waited for by events: a join() that an interrupt ends makes Python (before 3.13) take the thread for
    ended, and later ones return at once.
    """
    from threading import Event, Thread  # only several namespaces need them

    begun: list[Event] = []

    def run(end: Event) -> None:
        begun.append(end)
        let_this_thread_move()
        try:
            work()
        finally:
            end.set()

    ends = [Event() for _ in range(count)]
    threads = [Thread(target=run, args=(end,), name=f"socklb {number}") for number, end in enumerate(ends)]
    try:
        for thread in threads:
            start(thread)
        for end in ends:
            end.wait()
    except BaseException as error:
        fail(error)
        for end in tuple(begun):  # one that begins later finds the error, and nothing to do
            _wait_in_any_case(end)
    for thread in threads:
        if thread.is_alive():
            thread.join()


def _wait_in_any_case(end: Event) -> None:
    """Whoever interrupts again waits all the same: what is at hand is a batch, and it has to be accounted for."""
    while not end.is_set():
        try:
            end.wait()
        except KeyboardInterrupt:
            continue


def start(thread: Thread) -> None:
    """Start a thread. Raises KernelError where there can be no more of them."""
    try:
        thread.start()
    except RuntimeError as error:
        raise KernelError(errno.EAGAIN, f"start a thread: {error} (a limit on processes or memory)") from None
