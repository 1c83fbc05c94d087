"""Every namespace of the host: of processes, pins and mounts, each once, with a name and every path to it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from socklb import KernelError, NetworkNamespace
from socklb.kernel import discovery
from socklb.kernel.discovery import (
    DiscoveredNamespaces,
    UnsearchedNamespace,
    discover_namespaces,
    pin_names,
    pinned,
    unsearched,
)
from socklb.kernel.namespaces import NamespaceVanished, run_in_netns
from socklb.kernel.processes import numbers

from .. import world
from ..capabilities import with_only
from ..networks import in_thread, networks
from ..sockets import eventually, in_child, left_behind, no_thread_lingers, without_privilege

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("network")]

needs_groups = pytest.mark.skipif(
    Path("/proc/self/gid_map").read_text().split()[2:3] == ["1"],
    reason="members of group 0 see all: another one is needed",
)

IPROUTE = "/run/netns"
DOCKER = "/run/docker/netns"
CILIUM = "/run/cilium/netns"

OWN_COMMAND = Path("/proc/self/comm")


def paths_of(namespace: NetworkNamespace) -> list[str]:
    """Every path that leads there."""
    return [namespace.path, *namespace.alternate_paths]


class Pins:
    """Mounts namespaces over files, in directories of the test world's own /run or elsewhere; all is undone."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def directory(self, path: str) -> str:
        missing = []
        at = path
        while not os.path.exists(at):
            missing.append(at)
            at = os.path.dirname(at)
        for one in reversed(missing):
            os.mkdir(one)
            self._undo.callback(os.rmdir, one)
        return path

    def file(self, directory: str, name: str) -> str:
        """An empty file, as what is left in /run/netns of a namespace after a restart."""
        path = os.path.join(self.directory(directory), name)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        self._undo.callback(os.unlink, path)
        return path

    def link(self, target: str, directory: str, name: str) -> str:
        path = os.path.join(self.directory(directory), name)
        os.symlink(target, path)
        self._undo.callback(os.unlink, path)
        return path

    def pin(self, namespace: str, directory: str, name: str) -> str:
        """As `ip netns` does it; the path of the pin."""
        path = self.file(directory, name)
        world.bind(namespace, path)
        self._undo.callback(world.unmount, path)
        return path


@pytest.fixture
def pins() -> Iterator[Pins]:
    with ExitStack() as undo:
        yield Pins(undo)


@pytest.fixture
def other() -> Iterator[NetworkNamespace]:
    """A fresh namespace that only a descriptor of this process keeps alive, which nobody can discover."""
    with networks(1) as (made,):
        yield made.namespace


@contextmanager
def inhabitant(namespace: NetworkNamespace) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the namespace, until it is ended."""
    process = run_in_netns(namespace, lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE))
    no_thread_lingers()
    with process:
        try:
            comm = Path(f"/proc/{process.pid}/comm")
            eventually(lambda: comm.read_text() == "cat\n", "it has its name, a moment after Popen has seen it start")
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def names(found: DiscoveredNamespaces) -> list[str]:
    return [namespace.name for namespace in found]


def the(found: DiscoveredNamespaces, namespace: NetworkNamespace) -> NetworkNamespace:
    """The one as it was discovered."""
    (same,) = [one for one in found if one == namespace]
    return same


class TestEachOnce:
    """One namespace, one pass, however many names it has."""

    def test_alone_there_is_the_current_one(self) -> None:
        found = discover_namespaces()
        assert list(found) == [NetworkNamespace.current()]
        assert found.refused == ()
        assert "/proc/1/ns/net" in paths_of(found[0])

    def test_many_names_are_one_namespace_and_each_path_is_kept(
        self, other: NetworkNamespace, pins: Pins, tmp_path: Path
    ) -> None:
        paths = [
            pins.pin(other.path, IPROUTE, "blue"),
            pins.pin(other.path, IPROUTE, "navy"),
            pins.pin(other.path, DOCKER, "1234"),
            pins.pin(other.path, CILIUM, "cni-1"),
            pins.pin(other.path, str(tmp_path), "elsewhere"),
        ]
        with inhabitant(other) as one, inhabitant(other) as two:
            paths += [f"/proc/{one.pid}/ns/net", f"/proc/{two.pid}/ns/net"]
            found = discover_namespaces()
        assert list(found) == [NetworkNamespace.current(), other]
        assert sorted(paths_of(the(found, other))) == sorted(paths)
        assert found[1].name in ("blue", "navy", "1234", "cni-1"), "a pin is better known than a process"
        assert found.refused == ()

    @pytest.mark.parametrize("directory", discovery.PIN_DIRECTORIES)
    def test_each_directory_of_pins(self, other: NetworkNamespace, pins: Pins, directory: str) -> None:
        pins.link(other.path, directory, "a-link")  # a mount would be seen anyway
        assert names(discover_namespaces()) == ["current", "a-link"]

    def test_no_more_paths_are_kept_than_are_ever_needed(self, other: NetworkNamespace, pins: Pins) -> None:
        for number in range(30):
            pins.pin(other.path, IPROUTE, f"pin{number}")
        found = discover_namespaces()
        assert list(found) == [NetworkNamespace.current(), other]
        assert len(paths_of(the(found, other))) == 16

    def test_nothing_is_left_open(self, other: NetworkNamespace, pins: Pins) -> None:
        pins.pin(other.path, IPROUTE, "blue")
        before = os.listdir("/proc/self/fd")
        found = discover_namespaces()
        assert os.listdir("/proc/self/fd") == before
        assert len(found) == 2


class TestNames:
    """`current` is the caller's; else the pin's name, else the pid and command."""

    def test_current_comes_first_then_the_pinned_then_those_of_processes(self, pins: Pins) -> None:
        with networks(2) as (a, b), inhabitant(a.namespace) as process:
            pins.pin(b.namespace.path, IPROUTE, "zebra")
            found = discover_namespaces()
            assert list(found) == [NetworkNamespace.current(), b.namespace, a.namespace]
            assert names(found) == ["current", "zebra", f"pid {process.pid} (cat)"]

    def test_the_current_one_is_called_so_however_it_is_pinned(self, pins: Pins) -> None:
        path = pins.pin("/proc/thread-self/ns/net", IPROUTE, "blue")
        found = discover_namespaces()
        assert names(found) == ["current"]
        assert path in paths_of(found[0])

    def test_processes_go_by_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And what is no number in /proc is none."""
        listed = ["4000001", "900001", "self", "sys", "4000000"]
        monkeypatch.setattr(os, "listdir", lambda path: listed if path == "/proc" else [])
        monkeypatch.setattr(discovery, "nsfs_id", lambda path, _: (1, int(path.split("/")[2])))
        assert [one.path for one in discover_namespaces()[1:]] == [
            f"/proc/{pid}/ns/net" for pid in (900001, 4000000, 4000001)
        ]

    @pytest.mark.parametrize("directories", [(IPROUTE, DOCKER), (DOCKER, CILIUM)], ids=" ".join)
    def test_a_name_that_is_another_s_already_is_the_path_instead(
        self, pins: Pins, directories: tuple[str, str]
    ) -> None:
        with networks(2) as made:
            paths = [pins.pin(one.namespace.path, where, "same") for one, where in zip(made, directories)]
            found = discover_namespaces()
            assert {one.namespace for one in made} == set(found[1:])
        assert sorted(names(found)[1:]) in [sorted(["same", path]) for path in paths]

    def test_a_pin_that_calls_itself_current_is_not(self, other: NetworkNamespace, pins: Pins) -> None:
        path = pins.pin(other.path, IPROUTE, "current")
        assert names(discover_namespaces()) == ["current", path]

    def test_of_a_thread_that_moved_current_is_the_thread_s(self) -> None:
        def look() -> tuple[DiscoveredNamespaces, NetworkNamespace]:
            world.new_network()
            return discover_namespaces(), NetworkNamespace.current()

        found, moved = in_thread(look)
        assert found[0] == moved
        assert found[1] == NetworkNamespace.current()
        assert names(found)[0] == "current"
        assert names(found)[1].startswith("pid 1 (")

    @pytest.mark.parametrize("command", [b"a b)", b"\xff\xfe", b"(x\n", b"x)\n\x1b[3"], ids=repr)
    def test_a_command_of_any_bytes(self, command: bytes) -> None:
        def look() -> list[str]:
            world.new_network()
            return names(discover_namespaces())

        before = OWN_COMMAND.read_bytes()
        OWN_COMMAND.write_bytes(command)
        try:
            found = in_thread(look)
        finally:
            OWN_COMMAND.write_bytes(before.rstrip(b"\n"))
        shown = command.decode("utf-8", "replace").rstrip().encode("unicode_escape").decode()
        assert found == ["current", f"pid 1 ({shown})"]

    def test_a_process_that_ends_before_it_is_asked_for_its_command(self) -> None:
        assert discovery._name("/proc/4000000/ns/net", "pid", 4000000) == "pid 4000000 (ended)"


class TestRefused:
    """What is there and may not be looked at is in `.refused`; what vanished, or is no namespace, nowhere."""

    def test_paths_that_lead_to_no_namespace_or_cannot_be_looked_at(self, pins: Pins, other: NetworkNamespace) -> None:
        pins.file(IPROUTE, "stale")
        pins.link("/proc/4000000/ns/net", DOCKER, "container")
        loop = pins.link("loop", CILIUM, "loop")
        pins.pin(other.path, IPROUTE, "other")
        found = discover_namespaces()
        assert names(found) == ["current", "other"]
        assert found.refused == (UnsearchedNamespace(loop, "Too many levels of symbolic links", 1),)
        assert unsearched(found.refused, found) == [*found.refused]

    def test_processes_of_others_without_privilege(self) -> None:
        with left_behind() as pid:
            found, refused = in_child(lambda: (names(look := discover_namespaces()), look.refused), with_only())
        reason = "Permission denied; CAP_SYS_PTRACE is missing"
        assert found == ["current"]
        assert {UnsearchedNamespace(f"/proc/{process}/ns/net", reason, 1) for process in (1, pid)} <= set(refused)

    def test_a_process_that_ends_between_listing_and_opening(
        self, other: NetworkNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual = os.listdir
        with networks(1) as (another,), inhabitant(other) as process, inhabitant(another.namespace) as stays:

            def listed(path: str) -> list[str]:
                found = usual(path)
                if path == "/proc":
                    end(process)
                return found

            monkeypatch.setattr(os, "listdir", listed)
            found = discover_namespaces()
        assert names(found) == ["current", f"pid {stays.pid} (cat)"]
        assert found.refused == ()

    def test_a_process_that_ended_and_was_not_waited_for(self, other: NetworkNamespace) -> None:
        """To another user it looks like one that may not be looked at."""
        with inhabitant(other) as process:
            process.kill()
            state = Path(f"/proc/{process.pid}/stat")
            eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "Z", "a zombie")
            found = discover_namespaces()
            assert (names(found), found.refused) == (["current"], ())
            assert without_privilege(missed) == []


def missed() -> list[UnsearchedNamespace]:
    found = discover_namespaces()
    return unsearched(found.refused, found)


class TestUnsearched:
    """A process that may not be looked at is in a searched namespace if it has the same files in /proc/PID/net."""

    def test_who_is_where_the_search_was_is_not_missed(self) -> None:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as here:
            refused = without_privilege(lambda: discover_namespaces().refused)
            assert {f"/proc/{pid}/ns/net" for pid in (1, here.pid)} <= {one.path for one in refused}
            assert [one.path for one in unsearched(refused, ())] == ["/proc/1/ns/net"]
            assert unsearched(refused, [NetworkNamespace.current()]) == []
            here.kill()

    def test_who_is_elsewhere_is_and_one_namespace_counts_once(self, other: NetworkNamespace) -> None:
        with networks(1) as (another,), inhabitant(other) as one, inhabitant(other), inhabitant(another.namespace):
            (sum,) = without_privilege(missed)
            refused = without_privilege(lambda: discover_namespaces().refused)
            assert sum == UnsearchedNamespace(f"/proc/{one.pid}/ns/net", refused[0].reason, 2)
            found = discover_namespaces()
            assert unsearched(refused, found) == []
            assert unsearched(refused, [found[0], the(found, other)])[0].count == 1

    def test_the_first_process_there_may_have_ended(self, other: NetworkNamespace) -> None:
        with inhabitant(other) as first, inhabitant(other), inhabitant(other):
            refused = without_privilege(lambda: discover_namespaces().refused)
            found = discover_namespaces()
            assert the(found, other).path == f"/proc/{first.pid}/ns/net"
            first.kill()
            first.wait()
            assert unsearched(refused, found) == []

    def test_a_process_that_is_elsewhere_now_is_no_witness(self, other: NetworkNamespace) -> None:
        with inhabitant(other), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as here:
            refused = without_privilege(lambda: discover_namespaces().refused)
            moved = NetworkNamespace("moved", f"/proc/{here.pid}/ns/net", other.device, other.inode)
            assert unsearched(refused, [moved]) == unsearched(refused, [])
            here.kill()

    def test_one_that_cannot_be_entered_any_more_is_no_witness(self, other: NetworkNamespace) -> None:
        with inhabitant(other):
            refused = without_privilege(lambda: discover_namespaces().refused)
            gone = NetworkNamespace("gone", "/nowhere", other.device, other.inode)
            assert len(unsearched(refused, [gone, NetworkNamespace.current()])) == 1
            assert unsearched(refused, [gone, NetworkNamespace.current(), other]) == []

    @needs_groups
    def test_where_nothing_can_be_read_nothing_is_proven(self) -> None:
        """hidepid=1: processes are listed, and nobody may look into them."""
        with left_behind():
            (sum,) = in_child(missed, lambda: show_less("hidepid=1", with_only()))
        assert sum.path == "/proc/1/ns/net"
        assert sum.count > 1


def show_less(options: str, then: Callable[[], object] = lambda: None) -> None:
    """Mount /proc anew, with such options, where nobody else sees it; for all but members of another group."""
    world.unshare(world.CLONE_NEWNS)
    if os.getgid() == 0:
        os.setgroups([])
        os.setgid(1)
    world.mount("proc", "/proc", options)
    then()


class TestHidden:
    """Processes that /proc does not show are said, with their number."""

    SENTENCE = (
        r"namespaces of processes that /proc does not show are not searched \(([0-9]+), kernel threads counted\): "
    )

    def hidden(self, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], object] = lambda: None) -> str:
        """As if the test world's pid namespace were the host's, and its first process a thread of the kernel."""
        monkeypatch.setattr(discovery, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino)
        monkeypatch.setattr(discovery, "_KTHREADD", 1)
        return in_child(lambda: discover_namespaces().hidden, prepare)

    def test_a_pid_namespace_shows_its_own(self) -> None:
        said = re.fullmatch(
            self.SENTENCE + "it shows those of one pid namespace, not of the host",
            hidden := discover_namespaces().hidden,
        )
        assert said, hidden
        with left_behind(), left_behind():
            assert discovery._processes() > len(numbers("/proc"))

    @needs_groups
    def test_of_the_host_s_nothing_is_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.hidden(monkeypatch) == ""
        assert self.hidden(monkeypatch, lambda: show_less("hidepid=1", with_only())) == ""

    @needs_groups
    def test_hidepid_shows_one_s_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.hidden(monkeypatch, lambda: show_less("hidepid=2", with_only()))
        assert re.fullmatch(self.SENTENCE + "it is mounted with hidepid", said), said

    @needs_groups
    def test_hidepid_hides_nothing_from_who_may_look_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.hidden(monkeypatch, lambda: show_less("hidepid=2")) == ""


class TestOtherKinds:
    """A pinned namespace of another kind is not a network namespace that could be missed."""

    @pytest.mark.parametrize("directory", [IPROUTE, "elsewhere"])
    @pytest.mark.parametrize("kind", ["uts", "ipc"])
    def test_a_pin_of_one(self, pins: Pins, tmp_path: Path, directory: str, kind: str) -> None:
        where = str(tmp_path) if directory == "elsewhere" else directory
        pins.pin(f"/proc/self/ns/{kind}", where, "leftover")
        found = discover_namespaces()
        assert (names(found), found.refused) == (["current"], ())

    def test_a_link_to_one_and_a_fifo(self, pins: Pins) -> None:
        """Which the table of mounts does not show."""
        pins.link("/proc/self/ns/mnt", IPROUTE, "link")
        os.mkfifo(f"{IPROUTE}/fifo")
        try:
            found = discover_namespaces()
        finally:
            os.unlink(f"{IPROUTE}/fifo")
        assert (names(found), found.refused) == (["current"], ())

    def test_one_below_the_pin_of_a_network_namespace(self, pins: Pins, other: NetworkNamespace) -> None:
        path = pins.pin("/proc/self/ns/uts", IPROUTE, "web")
        world.bind(other.path, path)
        try:
            found = discover_namespaces()
        finally:
            world.unmount(path)
        assert list(found) == [NetworkNamespace.current(), other]

    def test_a_mount_namespace(self, pins: Pins) -> None:
        """As container runtimes and packagers leave them behind."""
        with ExitStack() as stack:
            pin = pins.file("/run/runtime", "leftover.mnt")
            assert any(pin_mounts_of(cpu, pin, stack) for cpu in os.sched_getaffinity(0))
            found = discover_namespaces()
        assert (names(found), found.refused) == (["current"], ())


def pin_mounts_of(cpu: int, path: str, undo: ExitStack) -> bool:
    """Pin the mount namespace of a child on this processor, if the kernel takes it for newer than that of this process.

    It takes no older ones (mnt_ns_loop()), and gives out their numbers to each processor in batches.
    """

    def prepare() -> None:
        os.sched_setaffinity(0, {cpu})
        world.unshare(world.CLONE_NEWNS)

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=prepare) as child:
        try:
            world.bind(f"/proc/{child.pid}/ns/mnt", path)
        except OSError:
            return False
        finally:
            end(child)
    undo.callback(world.unmount, path)
    return True


class TestAlternatePaths:
    """The process that named a namespace may have ended when it is entered: then another path leads there."""

    def test_another_process(self, other: NetworkNamespace) -> None:
        with inhabitant(other) as one, inhabitant(other) as two:
            found = the(discover_namespaces(), other)
            first, second = sorted((one, two), key=lambda process: process.pid)
            end(first)
            assert found.path == f"/proc/{first.pid}/ns/net"
            assert run_in_netns(found, NetworkNamespace.current) == other
            end(second)
            with pytest.raises(NamespaceVanished, match=f"vanished: nothing is at {found.path}"):
                run_in_netns(found, NetworkNamespace.current)

    def test_a_pin_that_is_gone(self, other: NetworkNamespace, pins: Pins) -> None:
        with inhabitant(other):
            with ExitStack() as undo:
                Pins(undo).pin(other.path, IPROUTE, "blue")
                found = the(discover_namespaces(), other)
            assert found.name == "blue"
            assert run_in_netns(found, NetworkNamespace.current) == other

    def test_a_pin_that_leads_to_another_one_now(self, other: NetworkNamespace, pins: Pins) -> None:
        with inhabitant(other), networks(1) as (another,):
            with ExitStack() as undo:
                Pins(undo).pin(other.path, IPROUTE, "blue")
                found = the(discover_namespaces(), other)
            pins.pin(another.namespace.path, IPROUTE, "blue")
            assert run_in_netns(found, NetworkNamespace.current) == other

    def test_they_are_tried_in_the_order_in_which_they_were_found(self) -> None:
        namespace = NetworkNamespace("n", "/first", 4, 1000, ("/second", "/third"))
        nothing = FileNotFoundError(errno.ENOENT, "")
        with (
            mock.patch.object(os, "open", side_effect=nothing) as opened,
            pytest.raises(KernelError, match="nothing is at /first"),
        ):
            run_in_netns(namespace, lambda: None)
        assert [call.args[0] for call in opened.call_args_list] == ["/first", "/second", "/third"]

    def test_one_that_may_not_be_opened_is_not_the_only_one(self, other: NetworkNamespace) -> None:
        """A process of another user may have the number of one that ended."""
        with open("/dev/null", "rb") as other_s:
            closed = f"/proc/self/fd/{other_s.fileno()}/x"
        real = os.open

        def refuse(path: str, *rest: int) -> int:
            if path == closed:
                raise PermissionError(errno.EACCES, "")
            return real(path, *rest)

        namespace = NetworkNamespace("n", closed, other.device, other.inode, (other.path,))
        with mock.patch.object(os, "open", refuse):
            assert run_in_netns(namespace, NetworkNamespace.current) == other


class TestPinned:
    """One namespace by its pin's name, as `ip netns` has them."""

    @pytest.mark.parametrize("directory", [IPROUTE, DOCKER, CILIUM])
    def test_by_name(self, other: NetworkNamespace, pins: Pins, directory: str) -> None:
        path = pins.pin(other.path, directory, "blue")
        found = pinned("blue")
        assert found == other
        assert (found.name, os.path.realpath(found.path)) == ("blue", path)

    def test_an_unknown_one_is_none_and_the_known_ones_are_listed(self, other: NetworkNamespace, pins: Pins) -> None:
        assert (pinned("red"), pin_names()) == (None, [])
        for directory, name in ((IPROUTE, "blue"), (DOCKER, "1234"), (CILIUM, "blue")):
            pins.pin(other.path, directory, name)
        assert (pinned("red"), pin_names()) == (None, ["1234", "blue"])

    def test_what_is_no_namespace_is_an_error(self, pins: Pins) -> None:
        pins.file(IPROUTE, "stale")
        pins.link("/proc/4000000/ns/net", DOCKER, "container")
        with pytest.raises(ValueError, match="stale is not a network namespace"):
            pinned("stale")
        with pytest.raises(ValueError, match=r"no network namespace at .*/container"):
            pinned("container")


class TestWithoutProc:
    def test_nothing_can_be_discovered_and_the_error_says_what_to_do(self) -> None:
        assert in_child(lambda: self.look(discover_namespaces), self.hide_proc) == (
            "look for network namespaces: /proc is not mounted; name them one by one"
        )

    def test_there_is_no_list_of_mounts(self) -> None:
        from socklb.kernel.mounts import mounts

        assert in_child(lambda: list(mounts()), self.hide_proc) == []

    def hide_proc(self) -> None:
        world.unshare(world.CLONE_NEWNS)
        world.mount("tmpfs", "/proc")

    def look(self, call: Callable[[], Any]) -> str:
        with pytest.raises(KernelError) as caught:
            call()
        return str(caught.value).partition("] ")[2] or str(caught.value)
