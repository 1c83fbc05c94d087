"""The root of a guest: packages of Debian, unpacked and never installed, as one cpio, and the kernel beside it.

Kept in $XDG_CACHE_HOME/socklb-kernels, and made anew when this file changes. No privilege is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from .targets import Target

_MIRROR = Path(__file__).parents[2] / ".ci/mirror"
_PACKAGES = ("python3", "iproute2", "busybox-static", "kmod", "netbase", "dash", "coreutils", "util-linux")
# What is pure Python and runs on 3.9 too. (Newer ones of hypothesis are compiled, newer ones of pytest want 3.10.)
_WHEELS = (
    *("pytest~=8.4.0", "hypothesis~=6.141.0", "iniconfig~=2.1.0", "pluggy~=1.6.0", "pygments~=2.19.0"),
    *("packaging~=25.0", "attrs~=25.0", "sortedcontainers~=2.4.0", "exceptiongroup~=1.3.0", "tomli~=2.0.0"),
    "typing_extensions~=4.15.0",
)
_MERGED = ("bin", "sbin", "lib", "lib64")  # links into /usr, which a package makes when it is installed
_KERNEL_PARTS = ("net", "lib", "crypto", "arch")
_DRIVERS = "drivers/net"
_DRIVER = "veth.ko*"
_LEFT_OUT = (
    *("boot", "dev", "usr/include", "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
    *("usr/share/i18n", "usr/share/perl*", "usr/lib/*/perl*", "usr/lib/*/gconv", "var/lib", "var/cache"),
    *("usr/lib/python3*/idlelib", "usr/lib/python3*/lib2to3", "usr/lib/python3*/pydoc_data"),
)
_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


class Root(NamedTuple):
    archive: Path
    kernel: Path


def cached(target: Target) -> Root:
    """The root of a target, made if it is not there, or was made otherwise."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "socklb-kernels"
    recipe = sha256(Path(__file__).read_bytes() + repr(target).encode()).hexdigest()[:12]
    place = home / target.name / recipe
    if not place.exists():
        shutil.rmtree(place.parent, ignore_errors=True)
        place.parent.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            _make(target, Path(scratch))
            (Path(scratch) / "made").rename(place)
    return Root(place / "root.cpio", place / "kernel")


def _make(target: Target, scratch: Path) -> None:
    """Into the directory `made` in there."""
    tree, made = scratch / "tree", scratch / "made"
    made.mkdir()
    _unpack(target, tree)
    for directory in _MERGED:
        if not (tree / directory).exists():
            (tree / "usr" / directory).mkdir(parents=True, exist_ok=True)
            (tree / directory).symlink_to(f"usr/{directory}")
    if not (tree / "bin/sh").exists():
        (tree / "bin/sh").symlink_to("dash")
    if target.kernel:
        _take_kernel(tree, made / "kernel")
    for pattern in _LEFT_OUT:
        for path in tree.glob(pattern):
            shutil.rmtree(path)
    for directory in ("dev", "etc", "proc", "root", "run", "socklb", "sys", "tmp"):
        (tree / directory).mkdir(exist_ok=True)
    for name, text in _ETC.items():
        (tree / "etc" / name).write_text(text, encoding="ascii")
    _add_python(tree)
    with open(made / "root.cpio", "wb") as archive:
        pack(tree, archive)


def _unpack(target: Target, tree: Path) -> None:
    options = (
        *("--quiet", "--mode=chrootless", "--variant=extract", f"--architectures={target.architecture}"),
        *('--aptopt=Acquire::Languages "none"', '--aptopt=Acquire::Check-Valid-Until "false"'),
        f"--include={','.join(filter(None, (*_PACKAGES, *target.packages, target.kernel)))}",
    )
    mirror = subprocess.run([_MIRROR], check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
    subprocess.run(["mmdebstrap", *options, target.suite, str(tree), mirror], check=True, stdin=subprocess.DEVNULL)


def _take_kernel(tree: Path, kernel: Path) -> None:
    """Move it out of the tree, and leave those modules that the package and its tests can use."""
    (modules,) = (tree / "lib/modules").iterdir()
    (image,) = [*tree.glob("boot/vmlinu[xz]-*"), *modules.glob("vmlinuz")][:1]
    shutil.copy(image, kernel)
    whole, kept = modules / "kernel", modules / "kept"
    for part in _KERNEL_PARTS:
        if (whole / part).exists():
            shutil.copytree(whole / part, kept / part)
    (kept / _DRIVERS).mkdir(parents=True)
    for driver in (whole / _DRIVERS).glob(_DRIVER):
        shutil.copy(driver, kept / _DRIVERS)
    shutil.rmtree(whole)
    kept.rename(whole)
    subprocess.run(["depmod", "-b", str(tree), modules.name], check=True)


def _add_python(tree: Path) -> None:
    """pytest and hypothesis, and bytecode of everything: a guest would take minutes to compile it."""
    python = os.readlink(tree / "usr/bin/python3")
    packages = tree / "usr/lib/python3/dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(packages)]
    only = ["--platform=any", "--only-binary=:all:", f"--python-version={python.replace('python', '')}"]
    subprocess.run([*pip, *only, *_WHEELS], check=True)
    compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    inside = ["unshare", "--map-root-user", f"--root={tree}", "/usr/bin/python3", *compile_all, "/usr/lib"]
    outside = [python, *compile_all, str(tree / "usr/lib")]  # of a foreign machine
    for command in (inside, outside):
        try:
            subprocess.run(command, check=True, capture_output=True)
            return
        except (OSError, subprocess.CalledProcessError):
            continue
    print(f"no {python} here to make bytecode with: the guest is slower", file=sys.stderr)


def pack(tree: Path, archive: object) -> None:
    names = subprocess.run(["find", ".", "-print0"], cwd=tree, check=True, stdout=subprocess.PIPE).stdout
    command = ["cpio", "--quiet", "--null", "--create", "--format=newc", "--owner=0:0"]
    subprocess.run(command, cwd=tree, check=True, input=names, stdout=archive)  # type: ignore[call-overload]
