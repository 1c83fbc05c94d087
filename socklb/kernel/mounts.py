"""What is mounted, as this process sees it: /proc/self/mountinfo."""

from __future__ import annotations

from collections import namedtuple

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


def mounts() -> Iterator[Mount]:
    """Every mount; none where /proc does not tell. The format is proc_pid_mountinfo(5)."""
    try:
        with open(_MOUNTINFO, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _, after = line.partition(" - ")
                _, _, _, root, point, *_ = before.split()
                yield Mount(_unescaped(root), _unescaped(point), after.partition(" ")[0])
    except (OSError, ValueError):
        return  # what cannot be read, or is no such table


def _unescaped(field: str) -> str:
    """A path as mountinfo has it, white space and backslashes in octal: show_mountinfo() of the kernel."""
    for character in " \t\n\\":
        field = field.replace(f"\\{ord(character):03o}", character)
    return field
