"""Do something for each of many things, in as many threads as there are processors.

The GIL is free while the kernel walks a table: two threads on two processors get through namespaces almost twice as
fast as one.
"""

from __future__ import annotations

import errno
import os

from ..errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Thread
    from typing import TypeVar

    T = TypeVar("T")


def in_parallel(
    function: Callable[[T], object], items: Iterable[T], stop: Callable[[str], object] | None = None
) -> None:
    """Call the function for each item, and return when all are done.

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
    from threading import Thread  # only several namespaces need them

    started: list[Thread] = []
    try:
        for number in range(count):
            thread = Thread(target=work, name=f"socklb {number}")
            start(thread)
            started.append(thread)
        for thread in started:
            thread.join()
    except BaseException as error:
        fail(error)
        for thread in started:
            _join_in_any_case(thread)


def _join_in_any_case(thread: Thread) -> None:
    """Whoever interrupts again waits all the same: what is at hand is a batch, and it has to be accounted for."""
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            continue


def start(thread: Thread) -> None:
    """Start a thread. Raises KernelError where there can be no more of them."""
    try:
        thread.start()
    except RuntimeError as error:
        raise KernelError(errno.EAGAIN, f"start a thread: {error} (a limit on processes or memory)") from None
