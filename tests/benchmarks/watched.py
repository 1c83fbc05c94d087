"""`socklb watch`: from the line that deletes a backend to the error that its client sees."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from types import TracebackType

from .. import package_under_test
from .crowd import BACKEND

_TEXT = f"{BACKEND[0]}:{BACKEND[1]}/TCP"


class Watched:
    """A running `watch`, and a client of the backend. The backend is alive except during `go_down`."""

    def __init__(self, root: str) -> None:
        command = [sys.executable, "-S", "-m", package_under_test.NAME, "watch", "--source", "-", "--netns", "current"]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8"
        )
        self._client: socket.socket | None = None

    def _say(self, **change: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**change, "backend": _TEXT}) + "\n")
        self._process.stdin.flush()

    def come_up(self) -> None:
        self._say(op="upsert")
        self.close_client()
        self._client = socket.create_connection(BACKEND)

    def go_down(self) -> None:
        """Delete the backend, and wait for the error of its client."""
        assert self._client is not None
        self._say(op="delete")
        poll = select.poll()
        poll.register(self._client, 0)  # errors alone
        assert poll.poll(10_000), "the client had no error within ten seconds"
        self._say(op="upsert")  # or the second pass would cut connections of the others that are measured

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()

    def __enter__(self) -> Watched:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_client()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
