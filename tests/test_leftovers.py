"""What a test run leaves behind: nothing. And what it leaves out, it tells, with the reason.

Runs of pytest as processes, on a copy of the checkout, in a user namespace whose namespaces are counted.
"""

from __future__ import annotations

import ast
import os
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from . import world
from .reverse_nat.balancer.balancer import Balancer
from .reverse_nat.balancer.cgroup import inside, new_cgroup
from .runs import CACHES, SECONDS, TESTS, arguments, copy_tests, environment, run
from .sockets import error_of, eventually, in_child, without_privilege
from .test_vendoring import vendor

pytestmark = pytest.mark.kernel

# Processes, namespaces that are pinned, left and discovered, mounts, roots, sockets, and properties.
FILES = (
    "tests/test_world.py",
    "tests/kernel/test_namespaces.py",
    "tests/wire/test_socket_id.py",
    "tests/kernel/test_sandbox.py",
    "tests/places/test_places.py",
)
BALANCED = ("tests/test_balancer.py", "-k", "test_nothing_else_is_pinned")
CHOSEN = ("-k", "not places or (ours and nothing and not zipapp)")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tests and of the package that they test, with a home and a temporary directory of its own."""
    copy = tmp_path / "checkout"
    vendor(copy, "socklb")
    copy_tests(copy / "tests")
    return copy


def enter() -> None:
    """A user namespace of one's own, with a /run and a /dev/shm in which nobody else writes."""
    world.become(0, world.CLONE_NEWNET | world.CLONE_NEWNS)
    world.private_mounts()
    for directory in ("/run", "/dev/shm"):
        if os.path.isdir(directory):
            world.mount("tmpfs", directory)


def processes() -> set[int]:
    """Those that have not ended; who inherits what is left of one that was killed may not have asked for it yet."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                found.add(int(name))
    return found


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def files(checkout: Path) -> dict[str, int]:
    """When each file was written, but for those of the tools' caches."""
    found = {}
    for top in (str(checkout.parent), "/run", "/dev/shm"):
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if name not in CACHES]
            for name in names + files:
                path = os.path.join(directory, name)
                found[path] = 0 if name in names else os.lstat(path).st_mtime_ns
    return found


def has_room_for_one() -> bool:
    """Whether this user namespace has no network namespace besides the one that it was entered with, and this try.

    The kernel counts those of all who live in it, and of the user namespaces below, however they are held.
    """
    Path("/proc/sys/user/max_net_namespaces").write_text("2")

    def has_room() -> bool:
        return error_of(lambda: world.unshare(world.CLONE_NEWNET)) == ""

    return in_child(has_room)


def comes_true(condition: Callable[[], bool]) -> bool:
    """What nobody holds any more is put away by the kernel in its own time."""
    with suppress(AssertionError):
        eventually(condition, "nothing is left")
        return True
    return False


def left_by(checkout: Path, call: Callable[[], None]) -> list[str]:
    """What is there after a call that was not there before; [] if nothing is."""

    def look() -> list[str]:
        before = processes(), mounts(), files(checkout)
        call()
        said = [] if comes_true(has_room_for_one) else ["a network namespace"]
        comes_true(lambda: processes() <= before[0])
        said += [f"process {pid}" for pid in processes() - before[0]]
        said += [f"mount {line}" for line in set(mounts().splitlines()) - set(before[1].splitlines())]
        said += [f"file {path}" for path, _ in set(files(checkout).items()) ^ set(before[2].items())]
        return sorted(said)

    try:
        return in_child(look, enter)
    finally:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # a test run is the first process of its world, and inherits them
                pass


def pin_a_namespace() -> None:
    def pin() -> None:
        world.new_network()
        Path("/run/pinned").touch()
        world.bind("/proc/self/ns/net", "/run/pinned")

    in_child(pin)


def once(condition: Callable[[], bool], what: str) -> None:
    assert condition(), what


class TestNothingIsLeft:
    def test_by_a_run(self, checkout: Path) -> None:
        def call() -> None:
            done = run(checkout, *FILES, *CHOSEN, SOCKLB_REQUIRE_KERNEL="1")
            assert done.returncode == 0, done.stdout

        assert left_by(checkout, call) == []

    @pytest.mark.parametrize("signal", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=lambda one: one.name)
    def test_by_a_run_that_is_stopped(self, checkout: Path, signal: signal.Signals) -> None:
        """Half-way: in a test, with processes and namespaces of its own; SIGINT reaches all, as from a terminal."""
        (checkout / "tests/test_half_way.py").write_text(HALF_WAY)

        def call() -> None:
            process = subprocess.Popen(
                arguments("-s", "tests/test_half_way.py"),
                cwd=checkout,
                env=environment(checkout),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                start_new_session=True,
            )
            assert process.stdout is not None
            assert any("half way" in line for line in process.stdout)
            with process.stdout:
                if signal.name == "SIGINT":
                    os.killpg(process.pid, signal)
                    assert any("test_half_way.py:" in line for line in process.stdout)  # the run itself was told
                    assert process.wait(SECONDS) == 2
                else:
                    process.send_signal(signal)
                    assert process.wait(SECONDS) == -signal

        left = left_by(checkout, call)
        if signal.name == "SIGKILL":  # nobody is left who could remove the temporary directory of the run
            root = f"file {checkout.parent}/tmp/socklb-tests-"
            left = [one for one in left if not one.startswith(root)]
        assert left == []

    def test_in_a_temporary_directory_that_only_root_may_enter(self, tmp_path: Path) -> None:
        """As everybody is, in the world that it was made in."""
        elsewhere, top = tmp_path / "elsewhere", tmp_path / "top"
        inner = top / "outer" / "inner"
        for directory in (elsewhere, inner):
            directory.mkdir(parents=True)
        (inner / "link").symlink_to(elsewhere)
        for directory in (elsewhere, inner, inner.parent):
            directory.chmod(0)
        without_privilege(lambda: world.remove_tree(str(top)))
        assert not top.exists()
        assert elsewhere.stat().st_mode & 0o777 == 0

    def test_but_where_somebody_wants_the_temporary_files(self, checkout: Path, tmp_path: Path) -> None:
        wanted = tmp_path / "wanted"
        wanted.mkdir()
        done = run(checkout, "tests/kernel/test_names.py", PYTEST_DEBUG_TEMPROOT=str(wanted))
        assert done.returncode == 0, done.stdout
        assert list(wanted.rglob("mountinfo"))

    @pytest.mark.parametrize(("flags", "wanted"), [(("-B",), ""), ((), "1")], ids=["-B", "PYTHONDONTWRITEBYTECODE"])
    def test_no_bytecode_where_none_is_wanted(self, checkout: Path, flags: tuple[str, ...], wanted: str) -> None:
        """The run keeps it in its temporary directory then."""
        said = environment(checkout, PYTHONDONTWRITEBYTECODE=wanted, SOCKLB_REQUIRE_KERNEL="1")
        said.pop("PYTHONPYCACHEPREFIX", None)  # that of the run that this is a part of
        python, *words = arguments("tests/kernel/test_names.py")
        subprocess.run([python, *flags, *words], cwd=checkout, env=said, check=True, stdout=subprocess.DEVNULL)
        assert not list(checkout.rglob("__pycache__"))

    def test_below_the_cgroup_of_a_run_with_a_balancer(self, checkout: Path, balancer: Balancer) -> None:
        """Its programs end with its cgroup, and its pins with the mounts of the run's world."""
        with new_cgroup() as directory:

            def call() -> list[str]:
                with inside(directory):
                    done = run(checkout, *BALANCED, SOCKLB_REQUIRE_KERNEL="1")
                assert done.returncode == 0, done.stdout
                assert "skipped" not in done.stdout
                return [path.name for path in Path(directory).iterdir() if path.is_dir()]

            assert in_child(call) == []

    @pytest.mark.parametrize(
        ("leave", "what"),
        [
            (lambda: subprocess.run(["sh", "-c", "sleep 30 & echo $! >&2"], check=True), "process"),
            (lambda: world.mount("tmpfs", "/run"), "mount"),
            (lambda: Path("/run/file").touch(), "file /run/file"),
            (lambda: Path("added").touch(), "file "),
            (lambda: Path("tests/world.py").touch(), "file "),
            (pin_a_namespace, "a network namespace"),
        ],
        ids=["process", "mount", "file", "in the checkout", "changed", "namespace"],
    )
    def test_what_is_left_is_seen(
        self, checkout: Path, leave: Callable[[], None], what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or nothing above could fail."""
        monkeypatch.setattr(f"{__name__}.eventually", once)
        monkeypatch.chdir(checkout)
        before = processes()
        left = left_by(checkout, leave)
        for pid in processes() - before:
            os.kill(pid, signal.SIGKILL)
        assert [one for one in left if one.startswith(what)]


HALF_WAY = """
import subprocess, sys, time
import pytest
from . import world

@pytest.mark.kernel
def test_half_way(network):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True):
        world.new_network()
        print("half way", flush=True)
        time.sleep(600)
"""


def as_user_without_namespaces(uid: int = 1000) -> None:
    """Prepare a child: an ordinary user, where no further user namespace can be had."""
    world.become(uid)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


# How often a file skips tests by itself, by the kind of reason.
SKIPS = {
    "all others": {"world.py": 1},
    "only root of the machine can have it": {"bpf_maps.py": 1, "balancer/fixture.py": 1, "test_balancer_setup.py": 2},
    "it is asked for": {"load/conftest.py": 1},
    "what is compared with is not there: a checkout, headers, a second interpreter, one that is installed": {
        "project.py": 1,
        "test_packaging.py": 3,
        "places/conftest.py": 1,
        "wire/test_bytecode.py": 2,
    },
    "another machine or interpreter": {
        "fuzz/test_targets.py": 1,
        "kernel/test_bpf.py": 1,
        "test_layers.py": 1,
        "wire/golden.py": 1,
        "wire/test_records.py": 1,
    },
}


class TestWhatIsSkippedIsTold:
    WHY = "no namespaces of one's own here: [Errno 28] unshare: No space left on device"

    def test_where_user_namespaces_are_forbidden(self, checkout: Path) -> None:
        done = in_child(lambda: run(checkout, *FILES[:2], "tests/wire/test_netlink.py"), as_user_without_namespaces)
        assert done.returncode == 0, done.stdout
        told = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        assert told
        assert [line for line in told if self.WHY not in line] == []

    def test_where_the_kernel_is_required_it_is_a_failure(self, checkout: Path) -> None:
        done = in_child(lambda: run(checkout, FILES[0], SOCKLB_REQUIRE_KERNEL="1"), as_user_without_namespaces)
        assert done.returncode == 1
        assert self.WHY in done.stdout
        assert "skipped" not in done.stdout

    @pytest.mark.parametrize("required", ["0", "1"])
    def test_one_that_the_machine_does_not_allow(self, checkout: Path, required: str) -> None:
        few = 2000, 2000
        done = in_child(
            lambda: run(checkout, "tests/kernel/test_diag_real.py", "-k", "five_times", SOCKLB_REQUIRE_KERNEL=required),
            lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few),
        )
        assert done.returncode == int(required), done.stdout
        assert "only 2000 descriptors" in done.stdout

    def test_only_what_is_no_lack_of_kernel_or_machine_is_skipped_where_they_are_required(self) -> None:
        """All else says `world.cannot`."""
        found: Counter[str] = Counter()
        for path in TESTS.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "importorskip"):
                    found[path.relative_to(TESTS).as_posix()] += 1
        assert found == {name: count for skips in SKIPS.values() for name, count in skips.items()}

    @pytest.mark.parametrize("required", ["0", "1"])
    def test_root_without_user_namespaces_does_without_the_places(self, checkout: Path, required: str) -> None:
        words = ("tests/places", "-k", "help and whole")
        done = in_child(
            lambda: run(checkout, *words, SOCKLB_REQUIRE_KERNEL=required), lambda: as_user_without_namespaces(0)
        )
        assert done.returncode == int(required), done.stdout
        assert "no user namespace can be had here" in done.stdout
