# SPDX-License-Identifier: MIT
"""What is mounted, as this process sees it: /proc/self/mountinfo."""

from __future__ import annotations

from collections import namedtuple

from .exhaustion import raise_if_exhausted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTINFO = "/proc/self/mountinfo"
_ROOT, _POINT = 3, 4  # behind the numbers of the mount, its parent and its device


class Mount(namedtuple("Mount", "root point type")):
    """`root`: which part of the file system is mounted ("net:[4026531840]" for a namespace); `point`: where; `type`."""

    __slots__ = ()
    root: str
    point: str
    type: str


def mounts() -> Iterator[Mount]:
    """Every mount; none where /proc cannot be read. The format is proc_pid_mountinfo(5).

    Raises KernelError where descriptors or memory have run out.
    """
    try:
        # The kernel escapes " \t\n\\" in paths and nothing else: any other white space, \r included, is part of a path.
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                fields = before.split(" ")
                if len(fields) > _POINT:
                    yield Mount(_unescaped(fields[_ROOT]), _unescaped(fields[_POINT]), after.partition(" ")[0])
    except OSError as error:
        raise_if_exhausted(error, "read the list of mounts")


def _unescaped(field: str) -> str:
    """Undo the octal escapes of show_mountinfo() (fs/proc_namespace.c)."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field
