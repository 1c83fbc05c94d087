# SPDX-License-Identifier: MIT
"""Output that holds nobody up: lines wait in a queue, and a thread of its own writes them."""

from __future__ import annotations

import os
from collections import deque
from threading import Thread

from ..errors import SocklbError
from ..termination.waker import Waker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO, Union

    Text = Union[str, Callable[[], str]]

ROOM = 10_000
"""So many texts wait at most."""

PATIENCE_SECONDS = 2.0
"""For so long the end waits for a reader who takes nothing."""


class Outlet:
    """Writes texts to a stream, in order. Whoever prints never waits, in a signal handler neither.

    What finds no room, or cannot be written, is counted; `on_lost` is called with the number as soon as writing works
    again, or at the end. Where the reader of a pipe has gone, or the stream is None, nobody misses it.
    """

    def __init__(self, stream: TextIO | None, on_lost: Callable[[int], object]) -> None:
        self._stream, self._on_lost = stream, on_lost
        self._texts: deque[Text | None] = deque()
        self._waker = Waker()
        self._lost = self._written = 0
        self._thread = start_thread(self._write_all, "socklb output")

    def print(self, text: Text) -> None:
        """Write this, or what this function returns by then, and a newline."""
        if self._stream is None:
            return
        if len(self._texts) < ROOM:
            self._put(text)
        else:
            self._lost += 1

    def _put(self, text: Text | None) -> None:
        self._texts.append(text)
        self._waker.wake()

    def close(self) -> None:
        """Wait until all is written, as long as that goes on."""
        self._put(None)
        before = -1
        while self._thread.is_alive() and self._written > before:
            before = self._written
            self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self._lost += len(self._texts)  # the last of these is no text, but the thread has one at hand
        self._tell()

    def _write_all(self) -> None:
        while self._stream is not None:
            if not self._texts:
                self._waker.wait()
                continue
            text = self._texts.popleft()
            if text is None:
                return
            try:
                self._write(f"{text if isinstance(text, str) else text()}\n")
            except BrokenPipeError:
                self._stream = None
            except OSError:
                self._lost += 1
            else:
                self._written += 1
                self._tell()

    def _write(self, text: str) -> None:
        """Past the stream's buffer: at the end the interpreter would wait for whoever is in there."""
        assert self._stream is not None
        data, descriptor = text.encode(self._stream.encoding, "backslashreplace"), self._stream.fileno()
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                from select import POLLOUT, poll  # few have a standard output that does not block

                waiting = poll()
                waiting.register(descriptor, POLLOUT)
                waiting.poll()

    def _tell(self) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            self._on_lost(lost)


def start_thread(function: Callable[[], object], name: str) -> Thread:
    """A thread that nobody has to wait for."""
    thread = Thread(target=function, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise SocklbError(f"start a thread: {error} (a limit on processes or memory)") from None
    return thread
