"""A guest: booted in an emulator, or, where its machine is this one and it has no kernel, entered here and now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .. import world
from .root import Root, pack
from .targets import Target

PROJECT = Path(__file__).resolve().parents[2]
_INIT = Path(__file__).parent / "guest/init"
_MS_REC = 16384
_CHECKS_SECONDS, _SUITES_SECONDS = 1200, 10000  # no check asserts a time: these only end what hangs


def run(target: Target, root: Root, output: Path, with_suites: bool) -> str:
    """Run the checks there, and write what is printed to a file. Why they did not end, or ""."""
    environment = {"SOCKLB_SUITES": "1"} if with_suites else {}
    seconds = _SUITES_SECONDS if with_suites else _CHECKS_SECONDS
    with tempfile.TemporaryDirectory() as scratch, open(output, "wb") as printed:
        project = Path(scratch) / "project"
        _copy_project(project)
        if target.kernel:
            command = ["nice", *_emulator(target, root, project, environment, Path(scratch) / "initramfs")]
        else:
            _unpack(root, project)
            command = [sys.executable, "-m", __spec__.name, str(project)]
        try:
            subprocess.run(
                command,
                cwd=PROJECT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {seconds} s"
        except subprocess.CalledProcessError as error:
            return f"the emulator ended with {error.returncode}"
    return ""


def _copy_project(tree: Path) -> None:
    """The checkout as it is, but for what git ignores, to /socklb; and the first process."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=PROJECT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    for name in names.split("\0")[:-1]:
        if (PROJECT / name).is_file():
            (tree / "socklb" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, tree / "socklb" / name)
    shutil.copy(_INIT, tree / "init")


def _emulator(target: Target, root: Root, project: Path, environment: dict[str, str], initramfs: Path) -> list[str]:
    """The command. Archives one behind the other are one root; what the kernel does not know it gives to /init."""
    shutil.copy(root.archive, initramfs)
    with open(initramfs, "ab") as archive:
        pack(project, archive)
    words = [f"console={target.console}", "loglevel=1", "panic=-1", *target.start]
    if target.architecture == "amd64":
        words.append("no_timer_check")  # on a busy machine the emulated timer comes too late for it
    return [
        *(*target.emulator, "-accel", "tcg", "-smp", "1", "-m", "2G", "-nodefaults", "-no-reboot"),
        *("-nographic", "-serial", "stdio", "-kernel", str(root.kernel), "-initrd", str(initramfs)),
        *("-append", " ".join((*words, *(f"{name}={value}" for name, value in environment.items())))),
    ]


def _unpack(root: Root, tree: Path) -> None:
    with open(root.archive, "rb") as archive:
        subprocess.run(["cpio", "--quiet", "--extract", "--no-absolute-filenames"], cwd=tree, check=True, stdin=archive)


def _enter(tree: str) -> None:
    """Become the checks, in this root and in a world of the tests."""
    if not world.enter():
        sys.exit(f"no new namespaces here: {world.why_none}")
    world.bind(tree, tree)
    for directory in ("/dev", "/proc", "/run", "/sys"):
        world.bind(directory, tree + directory, _MS_REC)
    world.pivot_root(tree)
    os.chdir("/socklb")
    python = "/usr/bin/python3"
    os.execve(python, [python, "-m", "tests.kernels.guest"], {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


if __name__ == "__main__":
    _enter(sys.argv[1])
