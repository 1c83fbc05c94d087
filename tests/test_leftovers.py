"""What a test run leaves behind: nothing. And what it leaves out, it tells, with the reason.

Runs of pytest as processes, on a copy of the checkout, in a user namespace whose namespaces are counted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import socklb

from . import world
from .sockets import error_of, eventually, in_child

pytestmark = pytest.mark.kernel

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(socklb.__file__).resolve().parent

# Processes, namespaces that are pinned, left and discovered, mounts, roots, and sockets.
FILES = (
    "tests/test_world.py",
    "tests/kernel/test_namespaces.py",
    "tests/kernel/test_sandbox.py",
    "tests/places/test_places.py",
)
CHOSEN = ("-k", "not places or (ours and nothing and not zipapp)")

# The tools' own, which .gitignore names; what else a run writes is in its temporary root.
CACHES = (".pytest_cache", ".hypothesis", "__pycache__")
TEMPORARY_ROOT = "socklb-tests-of-"

_SECONDS = 120


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tests and of the package that they test, with a home and a temporary directory of its own."""
    copy = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(*CACHES)
    shutil.copytree(TESTS, copy / "tests", ignore=ignored)
    shutil.copytree(PACKAGE, copy / "socklb", ignore=ignored)
    settings = TESTS.parent / "tox.ini"
    if settings.exists():
        shutil.copy(settings, copy)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    return copy


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-ra", *words]


def environment(checkout: Path, **more: str) -> dict[str, str]:
    """As somebody has it who starts the tests: outside of any world."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SOCKLB_", "PYTEST_", "COV"))}
    directories = {"HOME": str(checkout.parent / "home"), "TMPDIR": str(checkout.parent / "tmp")}
    return {**kept, **directories, "SOCKLB_PROFILE": "quick", **more}


def run(checkout: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(*words),
        cwd=checkout,
        env=environment(checkout, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=_SECONDS,
    )


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
    """When each file was written, but for those of the tools' caches and of the run's temporary root."""
    found = {}
    for top in (str(checkout.parent), "/run", "/dev/shm"):
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if name not in CACHES and not name.startswith(TEMPORARY_ROOT)]
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
                    assert process.wait(_SECONDS) == 2
                else:
                    process.send_signal(signal)
                    assert process.wait(_SECONDS) == -signal

        assert left_by(checkout, call) == []

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
        time.sleep(60)
"""


def as_user_without_namespaces(uid: int = 1000) -> None:
    """Prepare a child: an ordinary user, where no further user namespace can be had."""
    world.become(uid)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


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
    def test_root_without_user_namespaces_does_without_the_places(self, checkout: Path, required: str) -> None:
        words = ("tests/places", "-k", "help and whole")
        done = in_child(
            lambda: run(checkout, *words, SOCKLB_REQUIRE_KERNEL=required), lambda: as_user_without_namespaces(0)
        )
        assert done.returncode == int(required), done.stdout
        assert "no user namespace can be had here" in done.stdout
