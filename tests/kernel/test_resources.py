"""Where descriptors or memory have run out nobody can tell what is there: an error, and never "nothing"."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from socklb import Backend, KernelError, terminate_connections
from socklb.engine import session
from socklb.kernel import discovery
from socklb.kernel.discovery import pinned
from socklb.kernel.mounts import mounts
from socklb.kernel.names import cgroup_id
from socklb.kernel.resources import check_resources

from ..faults.test_real_limits import leave_descriptors
from ..sockets import Sockets, in_child, left_behind

EXHAUSTED = pytest.mark.parametrize(
    "code",
    [pytest.param(getattr(errno, name), id=name) for name in ("EMFILE", "ENFILE", "ENOMEM")],
)


class TestTheError:
    @EXHAUSTED
    def test_it_says_what_was_done_what_happened_and_what_to_do(self, code: int) -> None:
        with pytest.raises(KernelError, match=f"look around: {os.strerror(code)}; .+") as caught:
            check_resources(OSError(code, "open"), "look around")
        assert caught.value.errno == code

    @pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ESRCH])
    def test_any_other_says_something_about_what_was_looked_at(self, code: int) -> None:
        check_resources(OSError(code, "open"), "look around")
        check_resources(OSError("without a number"), "look around")


@pytest.mark.kernel
class TestNoDescriptorLeft:
    """On the real kernel: the limit of open files is reached."""

    @pytest.mark.parametrize(
        ("call", "says"),
        [
            pytest.param(lambda: pinned("red"), "look for network namespaces in ", id="pinned"),
            pytest.param(lambda: list(mounts()), "look at what is mounted: ", id="mounts"),
            pytest.param(lambda: cgroup_id("web.slice"), "look at what is mounted: ", id="cgroup"),
            pytest.param(lambda: discovery._command(1), "look up the command of process 1: ", id="command"),
            pytest.param(session.own_session, "look for one's own ssh session", id="session"),
        ],
    )
    def test_it_is_told(self, call: Callable[[], object], says: str) -> None:
        def look() -> tuple[int | None, str]:
            with pytest.raises(KernelError) as caught:
                call()
            return caught.value.errno, str(caught.value.strerror)

        code, told = in_child(look, lambda: leave_descriptors(0))
        assert code == errno.EMFILE
        assert told.startswith(says)
        assert "(ulimit -n)" in told

    @pytest.mark.parametrize(
        ("where", "doing"),
        [("/proc/1/task", "look for network namespaces in /proc/1/task"), ("/proc/1/ns/net", "look at /proc/1/ns/net")],
    )
    def test_there_may_be_no_memory_to_look_at_a_path(
        self, monkeypatch: pytest.MonkeyPatch, where: str, doing: str
    ) -> None:
        usual = os.stat

        def stat(path: str, **options: bool) -> os.stat_result:
            if str(path) == where:
                raise OSError(errno.ENOMEM, "stat")
            return usual(path, **options)

        monkeypatch.setattr(os, "stat", stat)
        with pytest.raises(KernelError, match=f"^.Errno 12. {doing}: Cannot allocate memory"):
            discovery.discover()


@pytest.mark.kernel
@pytest.mark.usefixtures("network")
class TestDiscovery:
    """A namespace that could not be looked for is not one that is not there."""

    @pytest.mark.parametrize("directory", ["/proc", "/run", "/proc/self/task", "/nowhere"])
    def test_they_run_out_as_a_directory_is_listed(self, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
        usual = os.listdir
        backend = Backend("127.0.0.2", 9000, "udp")

        def listdir(path: str) -> list[str]:
            if Path(path).resolve() == Path(directory).resolve():
                leave_descriptors(0)
            return usual(path)

        def look() -> tuple[int | None, str]:
            monkeypatch.setattr(os, "listdir", listdir)
            monkeypatch.setattr(discovery, "PIN_DIRECTORIES", ("/run",))
            try:
                with another_thread():
                    report = terminate_connections([backend], dry_run=True)
            except KernelError as error:
                return error.errno, str(error.strerror).partition(":")[0]
            return 0, f"{report.matched} matched"

        with Sockets() as sockets:
            sockets.udp("127.0.0.2", 9000)
            with left_behind():
                code, told = in_child(look)
        if directory == "/nowhere":
            assert (code, told) == (0, "1 matched")
        else:
            assert code == errno.EMFILE
            assert told.startswith("look for network namespaces in /")


def test_a_socket_of_sshd_that_there_is_no_memory_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell whether it is one's own session."""

    def readlink(path: str) -> str:
        raise OSError(errno.ENOMEM, "readlink")

    monkeypatch.setattr(os, "readlink", readlink)
    with pytest.raises(KernelError, match=r"own ssh session.*Cannot allocate memory"):
        list(session._socket_inodes(os.getpid()))


@contextmanager
def another_thread() -> Iterator[None]:
    ended = Event()
    thread = Thread(target=ended.wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
