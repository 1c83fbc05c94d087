# SPDX-License-Identifier: MIT
"""What is mounted, as this process sees it: /proc/self/mountinfo."""

from __future__ import annotations

from collections import namedtuple

from .resources import check_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NamedTuple

    class Mount(NamedTuple):
        """`root` is what of the file system is mounted ("net:[4026531840]" for a namespace), `type` its kind."""

        root: str
        point: str
        type: str

else:
    Mount = namedtuple("Mount", "root point type")

_MOUNTINFO = "/proc/self/mountinfo"
_ROOT, _POINT = 3, 4  # behind the numbers of the mount, its parent and its device


def mounts() -> Iterator[Mount]:
    """Every mount; none where /proc does not tell. The format is proc_pid_mountinfo(5).

    Raises KernelError where descriptors or memory have run out, and nobody can tell.
    """
    try:
        # The kernel escapes " \t\n\\" in paths and nothing else: any other white space, \r among it, is a part of one.
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                fields = before.split(" ")
                if len(fields) > _POINT:
                    yield Mount(_unescaped(fields[_ROOT]), _unescaped(fields[_POINT]), after.partition(" ")[0])
    except OSError as error:
        check_resources(error, "look at what is mounted")


def _unescaped(field: str) -> str:
    """A path as mountinfo has it, white space and backslashes in octal: show_mountinfo() of the kernel."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field
