"""The smallest roots that a CPython lives in: the interpreter, its C library, its standard library, and socklb.

roots = Roots(directory, interpreter(sys.executable))
roots.run(BARE, "probe")        the command, and nothing else, in that root
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from .. import world
from ..cli.runner import PACKAGE, SECONDS, Result

_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_REC = 16384
_MOUNT_FLAGS = 0b1111 | 0x400 | 0x800  # those of statvfs(3) that mount(2) knows by the same number

# What no image that is meant to be small has: tests, tools for developers, and what needs more than the C library.
_LEFT_OUT = shutil.ignore_patterns(
    *("test", "tests", "*_test*", "_test*", "xx*", "_xx*", "*-packages", "sitecustomize.py", "config-*"),
    *("distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo", "venv", "*.opt-1.pyc"),
    *("_bz2.*", "_codecs_*", "_crypt.*", "_curses*", "_dbm.*", "_gdbm.*", "_hashlib.*", "_lzma.*", "_sqlite3.*"),
    *("_ssl.*", "_tkinter.*", "_uuid.*", "nis.*", "ossaudiodev.*", "readline.*", "zlib.*"),
)
_NO_CACHES = shutil.ignore_patterns("__pycache__")
_CTYPES = "_ctypes.*"
_ETC = {
    "passwd": "root:x:0:0:root:/:/bin/sh\n",
    "hosts": "127.0.0.1 localhost\n",
    "services": "here-alone 9000/tcp\nhere-alone 9000/udp\n",
}

# A zipapp is made of a directory with a __main__.py; `-m` of zipapp would drop what `main` returns.
MAIN = "import sys, socklb.cli; sys.exit(socklb.cli.main())\n"

_FACTS = """
import json, sys, sysconfig
print(json.dumps([sys._base_executable, sys.version_info[:2], sysconfig.get_path("stdlib")]))
"""


class Interpreter(NamedTuple):
    """A CPython as it is installed; not a virtual environment, which is of no use without one."""

    executable: Path
    version: tuple[int, int]
    stdlib: Path


class MinimalRoot(NamedTuple):
    """What a root lacks, and how the interpreter is started in it."""

    name: str
    lacks: tuple[str, ...] = ()
    """Modules of the standard library; directories; "writing" if it is read-only."""
    in_c_locale: bool = False
    """But -I, as of the zipapp, ignores what keeps CPython in it."""
    is_zipapp: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        return ("-W", "error", *(("-I", "-S", "-OO") if self.is_zipapp else ()))

    @property
    def command(self) -> tuple[str, ...]:
        return ("/app/socklb.pyz",) if self.is_zipapp else ("-m", "socklb")

    @property
    def environment(self) -> dict[str, str]:
        libraries = {"LD_LIBRARY_PATH": "/lib"}
        if not self.in_c_locale:
            return {**libraries, "LC_ALL": "C.UTF-8"}
        # Left to itself, CPython takes the C locale for C.UTF-8 (PEP 538, PEP 540).
        return {**libraries, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


WHOLE = MinimalRoot("whole")
NO_CTYPES = MinimalRoot("no ctypes", ("ctypes",))
NO_JSON = MinimalRoot("no json", ("ctypes", "json", "queue"))  # as python3-minimal of Debian 12
NO_ETC = MinimalRoot("no /etc", ("/etc",))
NO_PROC = MinimalRoot("no /proc", ("/proc",))
READ_ONLY = MinimalRoot("read-only", ("writing",))
BARE = MinimalRoot("bare", ("/etc", "/proc", "ctypes", "writing"), in_c_locale=True)
ZIPAPP = BARE._replace(name="bare, zipapp", is_zipapp=True)

_FILES = {"ctypes": [_CTYPES], "json": ["json"], "queue": ["queue.py", "_queue.*"], "/etc": ["etc"]}
"""What is taken out of the whole tree."""


def interpreter(executable: str) -> Interpreter:
    """Raises OSError or CalledProcessError if that is none."""
    done = subprocess.run([executable, "-I", "-c", _FACTS], stdout=subprocess.PIPE, check=True, timeout=SECONDS)
    base, (major, minor), stdlib = json.loads(done.stdout)
    return Interpreter(Path(base).resolve(), (major, minor), Path(stdlib))


class Roots:
    """Trees of one interpreter, built when first needed; all but the first consist of hard links to it."""

    shell: tuple[str, ...] = ()
    app = ""

    def __init__(self, directory: Path, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        self._directory = directory

    def tree(self, root: MinimalRoot) -> Path:
        """The directory that becomes the root."""
        whole = self._directory / "whole"
        if not whole.exists():
            build(self.interpreter, whole)
        files = [file for lacked in root.lacks for file in _FILES.get(lacked, ())]
        tree = self._directory / "-".join(("whole", *files))
        if not tree.exists():
            shutil.copytree(whole, tree, copy_function=os.link)
            for path in [path for file in files for path in tree.rglob(file)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return tree

    def run(self, root: MinimalRoot, *words: str, stdin: str = "") -> Result:
        """Run `socklb WORDS...` there. The caller has to be in a user namespace that owns its network namespace."""
        return self._run(root, [*root.command, *words], stdin)

    def python(self, root: MinimalRoot, program: str) -> Result:
        """Run a program there, in the interpreter that the command would be run by."""
        return self._run(root, ["-c", program])

    def _run(self, root: MinimalRoot, words: Sequence[str], stdin: str = "") -> Result:
        tree = str(self.tree(root))
        done = subprocess.run(
            [*self.shell, "/usr/bin/python3", *root.flags, *words],
            env=root.environment,
            preexec_fn=lambda: enter(tree, root, self.app),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
        )
        return Result(done.returncode, done.stdout, done.stderr)


def given(name: str) -> Path:
    """A tree that `.ci/roots` has made; skips where there are none."""
    folder = os.environ.get("SOCKLB_ROOTS")
    if not folder:
        pytest.skip("SOCKLB_ROOTS names no folder that .ci/roots has filled")
    return Path(folder, name)


class GivenRoots(Roots):
    """A tree of others; the package is mounted into it, and may be started by busybox."""

    def __init__(self, tree: Path, by_busybox: bool) -> None:
        self._tree, self.app = tree, str(PACKAGE.parent)
        if by_busybox:
            self.shell = ("/bin/busybox", "sh", "-c", 'exec "$0" "$@"')

    def tree(self, root: MinimalRoot) -> Path:
        return self._tree


def enter(tree: str, root: MinimalRoot, app: str = "") -> None:
    """For `preexec_fn`. With a package from outside mounted on /app, if one is named."""
    world.unshare(world.CLONE_NEWNS)
    world.private_mounts()
    world.bind(tree, tree)
    if app:
        world.bind(app, f"{tree}/app")
    if "/proc" not in root.lacks:
        world.bind("/proc", f"{tree}/proc", _MS_REC)
    if "writing" in root.lacks:
        kept = os.statvfs(tree).f_flag & _MOUNT_FLAGS  # a user namespace may not lift what was mounted outside
        world.bind(tree, tree, _MS_REMOUNT | _MS_RDONLY | kept)
    world.pivot_root(tree)
    os.chdir("/app")


def build(interpreter: Interpreter, root: Path) -> None:
    """The whole root: /usr with the interpreter, /lib with the libraries, /app, /etc, and a mount point for /proc."""
    stdlib = root / "usr" / interpreter.stdlib.parent.name / interpreter.stdlib.name
    shutil.copytree(interpreter.stdlib, stdlib, ignore=_LEFT_OUT)
    (root / "usr/bin").mkdir()
    shutil.copy2(interpreter.executable, root / "usr/bin/python3")
    for directory in ("lib", "etc", "proc", "app"):
        (root / directory).mkdir(exist_ok=True)
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text, encoding="ascii")
    _copy_libraries([interpreter.executable, *stdlib.rglob(_CTYPES)], root)
    _put_socklb(interpreter, root / "app")


def _copy_libraries(binaries: Sequence[Path], root: Path) -> None:
    """Those that ldd(1) tells: a library into /lib, the loader to the path that is written into every program."""
    placed: dict[Path, Path] = {}
    for binary in binaries:
        listed = subprocess.run(["ldd", str(binary)], stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
        for name, path in re.findall(r"^\s*(?:(\S+) => )?(/\S+) \(0x", listed, re.MULTILINE):
            if name.startswith("/"):  # the program's own loader, and the one that ldd took in its place
                name, path = "", name
            source = Path(path).resolve()
            target = root / "lib" / name if name else root / path.lstrip("/")
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if source in placed:  # the C library of musl is its loader, and has to stay one file
                os.link(placed[source], target)
            else:
                shutil.copy2(source, target)
                placed[source] = target
    for source in placed:  # glibc loads it for a thread that is still there when the interpreter ends, or aborts
        helper = source.with_name("libgcc_s.so.1")
        if source.name.startswith("libc.so") and helper.exists():
            shutil.copy2(helper, root / "lib" / helper.name)


def _put_socklb(interpreter: Interpreter, app: Path) -> None:
    package = app / "socklb"
    shutil.copytree(PACKAGE, package, ignore=_NO_CACHES)
    archived = app / "archived"
    shutil.copytree(package, archived / "socklb")
    (archived / "__main__.py").write_text(MAIN, encoding="ascii")
    zipapp.create_archive(archived, app / "socklb.pyz")
    shutil.rmtree(archived)
    compile_it = ["-m", "compileall", "-q", str(package)]  # or each start of it would take that time
    subprocess.run([str(interpreter.executable), "-I", *compile_it], check=True, timeout=SECONDS)


def system_python() -> Interpreter | str:
    """The interpreter of the distribution, if it is another one that socklb supports; else why not."""
    path = "/usr/bin/python3"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found = interpreter(path)
        if found.executable == interpreter(sys.executable).executable:
            return f"{path} is the interpreter that runs the tests"
        if found.version < (3, 9):
            return f"{path} is older than 3.9"
        if not (found.stdlib / "ipaddress.py").exists():
            return f"the standard library of {path} is not all there"
        return found
    return f"there is no {path}"
