"""A file in memory: a library can read it by its path, and then there is none."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from socklb.sources.kubernetes.memory_file import memory_file

from ...sockets import error_of


def test_it_can_be_read_from_its_beginning_as_often_as_needed_and_is_gone_then() -> None:
    content = os.urandom(100_000)
    with memory_file(content) as path:
        assert [Path(path).read_bytes() for _ in range(2)] == [content] * 2
    assert error_of(lambda: os.stat(path)) == "ENOENT"


def test_no_program_inherits_it() -> None:
    with memory_file(b"secret") as path:
        number = path.rpartition("/")[2]
        done = subprocess.run(["ls", f"/proc/self/fd/{number}"], close_fds=False, capture_output=True, check=False)
    assert done.returncode != 0


def test_a_kernel_that_does_not_know_the_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.memfd_create

    def before_6_3(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return usual(name, flags)

    monkeypatch.setattr(os, "memfd_create", before_6_3)
    with memory_file(b"content") as path:
        assert Path(path).read_bytes() == b"content"


def test_where_there_can_be_none_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "exists", lambda path: False)
        with pytest.raises(OSError, match="there is no /proc here"), memory_file(b""):
            pass
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match=r"this Python was built without os.memfd_create\(\)"), memory_file(b""):
        pass
