"""Where descriptors or memory have run out: an error that says so, and never "nothing there"."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from socklb import KernelError, SocketFilter, destroy_sockets, dst
from socklb.engine.session import own_session
from socklb.kernel import discovery
from socklb.kernel.discovery import discover_namespaces, pin_names
from socklb.kernel.exhaustion import raise_if_exhausted
from socklb.kernel.mounts import mounts
from socklb.kernel.names import cgroup_id
from socklb.kernel.namespaces import run_in_netns
from socklb.kernel.processes import command_name, socket_inodes

from ..networks import networks
from ..sockets import Sockets, in_child, leave_descriptors, left_behind
from .test_discovery_threads import waiting_threads


class TestTheError:
    @pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
    def test_it_says_what_was_done_what_happened_and_what_to_do(self, name: str) -> None:
        code = getattr(errno, name)
        with pytest.raises(KernelError, match=f"look around: {os.strerror(code)}; .+") as caught:
            raise_if_exhausted(OSError(code, "open"), "look around")
        assert caught.value.errno == code

    @pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
    def test_an_import_says_so_in_words(self, name: str) -> None:
        code = getattr(errno, name)
        text = f"libffi.so.8: cannot open shared object file: {os.strerror(code)}"
        with pytest.raises(KernelError, match=f"import ctypes: {os.strerror(code)}; .+") as caught:
            raise_if_exhausted(ImportError(text), "import ctypes")
        assert caught.value.errno == code
        raise_if_exhausted(ImportError("No module named '_ctypes'"), "import ctypes")

    @pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ESRCH, None])
    def test_any_other_says_something_about_what_was_looked_at(self, code: int | None) -> None:
        raise_if_exhausted(OSError(code, "open") if code else OSError("without a number"), "look around")


@pytest.mark.kernel
class TestNoDescriptorLeft:
    """On the real kernel: the limit of open files is reached."""

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            pytest.param(pin_names, "list /", id="pins"),
            pytest.param(lambda: list(mounts()), "read the list of mounts: ", id="mounts"),
            pytest.param(lambda: cgroup_id("web.slice"), "read the list of mounts: ", id="cgroup"),
            pytest.param(lambda: command_name(1), "read /proc/1/comm: ", id="command"),
            pytest.param(own_session, "read /proc/", id="session"),
        ],
    )
    def test_the_error_says_what_could_not_be_looked_at(self, call: Callable[[], object], says: str) -> None:
        def look() -> tuple[int | None, str]:
            with pytest.raises(KernelError) as caught:
                call()
            return caught.value.errno, str(caught.value.strerror)

        code, text = in_child(look, lambda: leave_descriptors(0))
        assert code == errno.EMFILE
        assert text.startswith(says)
        assert "(ulimit -n)" in text

    def test_a_python_that_cannot_load_ctypes_has_it_all_the_same(
        self, network: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def look() -> tuple[str, int | None, str]:
            monkeypatch.delattr(os, "setns", raising=False)
            for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes")]:
                monkeypatch.delitem(sys.modules, name)
            leave_descriptors(1)  # for the namespace
            with pytest.raises(KernelError) as caught:
                run_in_netns(other, lambda: None)
            return type(caught.value).__name__, caught.value.errno, str(caught.value.strerror).partition(":")[0]

        with networks(1) as (made,):
            other = made.namespace
            assert in_child(look) == ("KernelError", errno.EMFILE, "import ctypes")

    @pytest.mark.parametrize("directory", ["/proc", "/run", "/proc/self/task", "/nowhere"])
    def test_a_namespace_that_could_not_be_looked_for_is_not_missing(
        self, network: None, directory: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They run out as a directory is listed."""
        usual = os.listdir
        clients = SocketFilter("udp", dst("127.0.0.2", 9000))

        def listdir(path: str) -> list[str]:
            if Path(path).resolve() == Path(directory).resolve():
                leave_descriptors(0)
            return usual(path)

        def look() -> tuple[int | None, str]:
            monkeypatch.setattr(os, "listdir", listdir)
            monkeypatch.setattr(discovery, "PIN_DIRECTORIES", ("/run",))
            try:
                with waiting_threads(1):
                    report = destroy_sockets(clients, namespaces="all", dry_run=True)
            except KernelError as error:
                return error.errno, str(error.strerror).partition(":")[0]
            return 0, f"{report.matched} matched"

        with Sockets() as sockets:
            sockets.udp("127.0.0.2", 9000)
            with left_behind():
                code, text = in_child(look)
        if directory == "/nowhere":
            assert (code, text) == (0, "1 matched")
        else:
            assert code == errno.EMFILE
            assert text.startswith("list /")


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("path", "doing"),
    [("/proc/1/task", "look for network namespaces in /proc/1/task"), ("/proc/1/ns/net", "look at /proc/1/ns/net")],
)
def test_there_may_be_no_memory_to_look_at_a_path(monkeypatch: pytest.MonkeyPatch, path: str, doing: str) -> None:
    usual = os.stat

    def stat(looked_at: str, **options: bool) -> os.stat_result:
        if str(looked_at) == path:
            raise OSError(errno.ENOMEM, "stat")
        return usual(looked_at, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(KernelError, match=f"^.Errno 12. {doing}: Cannot allocate memory"):
        discover_namespaces()


def test_nor_to_look_at_a_descriptor_of_sshd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can say then whether a socket belongs to the own session."""

    def readlink(path: str) -> str:
        raise OSError(errno.ENOMEM, "readlink")

    monkeypatch.setattr(os, "readlink", readlink)
    with pytest.raises(KernelError, match=r"look at what process .*Cannot allocate memory"):
        list(socket_inodes(os.getpid()))
