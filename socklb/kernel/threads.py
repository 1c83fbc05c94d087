# SPDX-License-Identifier: MIT
"""Threads, by `_thread` alone: importing `threading` takes as long as a third of `import socket`."""

from __future__ import annotations

import errno
from _thread import allocate_lock, start_new_thread

from ..errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def start_thread(function: Callable[[], object]) -> None:
    """Run a function, which must not raise, in a thread of its own. Raises KernelError where none can be had."""
    try:
        start_new_thread(function, ())
    except RuntimeError as error:
        raise KernelError(errno.EAGAIN, f"start a thread: {error} (a limit on processes or memory)") from None


def call_in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread made for it, and return or raise what it does."""
    results: list[T] = []
    errors: list[BaseException] = []
    running = allocate_lock()
    running.acquire()

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        running.release()

    start_thread(call)
    running.acquire()
    if errors:
        raise errors[0]
    return results[0]
