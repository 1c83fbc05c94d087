# SPDX-License-Identifier: MIT
"""What has run out: then an error says nothing about what was looked at, and is not to be taken for "nothing there"."""

from __future__ import annotations

import errno
import os

from ..errors import KernelError

_REMEDIES = {
    errno.EMFILE: "raise the limit of open files of this process (ulimit -n), or let it open fewer",
    errno.ENFILE: "raise fs.file-max, or let other processes open fewer files",
    errno.ENOMEM: "free memory, or raise the limit of this process or its cgroup",
}


def check_resources(error: OSError, doing: str) -> None:
    """Raises KernelError if it was for want of descriptors or memory that this could not be done."""
    code = error.errno or 0
    if code in _REMEDIES:
        raise KernelError(code, f"{doing}: {os.strerror(code)}; {_REMEDIES[code]}") from None
