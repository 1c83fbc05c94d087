"""coverage traces threads that `threading` starts; the package starts its own below that, with `_thread`."""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from typing import Any


def trace_all() -> None:
    """While coverage is at work, let every thread be traced that is started from now on.

    Not on CPython 3.9, which does not say what `threading` traces with; from 3.12 on coverage may need no tracing.
    """
    trace = threading.gettrace() if sys.version_info >= (3, 10) else None
    if trace is None:
        return
    start_new_thread = _thread.start_new_thread

    def start_traced(function: Callable[..., object], *arguments: Any) -> int:
        def traced(*args: Any, **kwargs: Any) -> None:
            sys.settrace(trace)
            function(*args, **kwargs)

        return start_new_thread(traced, *arguments)

    setattr(_thread, "start_new_thread", start_traced)  # noqa: B010 - type checkers refuse an assignment
