"""Processes forked from this one, which hold sockets of their own and answer questions.

with Child(body) as child:                         # body(pipe) runs there; it ends when the pipe does, or before
    child.ask("errors")                            # what the body sends back
"""

from __future__ import annotations

import os
import resource
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from .sockets import no_thread_lingers


class _Failure:
    """What a child sends when it fails, in place of an answer."""

    def __init__(self, text: str) -> None:
        self.text = text


class Child:
    """A forked process that runs a function with its end of a pipe.

    Several are to be ended youngest first, as an ExitStack does: the younger ones hold ends of the older ones' pipes.
    """

    def __init__(self, body: Callable[[Connection], object]) -> None:
        no_thread_lingers()
        self._pipe, theirs = Pipe()
        self.pid = os.fork()
        if not self.pid:
            self._pipe.close()
            _live(body, theirs)
        theirs.close()

    def ask(self, question: object) -> Any:
        """Send it something, and wait for the answer."""
        self.send(question)
        return self.receive()

    def send(self, question: object) -> None:
        self._pipe.send(question)

    def receive(self) -> Any:
        """What it sends next; RuntimeError if it failed or died."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"process {self.pid} died; is memory short?") from None
        if isinstance(answer, _Failure):
            raise RuntimeError(f"process {self.pid} failed:\n{answer.text}")
        return answer

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        os.waitpid(self.pid, 0)


def _live(body: Callable[[Connection], object], pipe: Connection) -> None:
    """In the child: never returns."""
    try:
        body(pipe)
    except (EOFError, BrokenPipeError):
        pass  # the parent has closed its end
    except BaseException:
        pipe.send(_Failure(traceback.format_exc()))
    finally:
        os._exit(0)


def questions(pipe: Connection) -> Iterator[Any]:
    """What a child is asked, until it is to end."""
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        yield question


_SPARE_DESCRIPTORS = 100


def allow_descriptors() -> int:
    """Raise the limit on descriptors for this process and those it forks; returns how many sockets it has room for."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return limit - _SPARE_DESCRIPTORS
