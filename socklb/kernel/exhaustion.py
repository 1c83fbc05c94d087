# SPDX-License-Identifier: MIT
"""EMFILE, ENFILE and ENOMEM must not be read as "nothing there"."""

from __future__ import annotations

import errno
import os

from ..errors import KernelError

_REMEDIES = {
    errno.ENFILE: "raise fs.file-max, or let other processes open fewer files",
    errno.EMFILE: "raise the limit of open files of this process (ulimit -n), or let it open fewer",
    errno.ENOMEM: "free memory, or raise the limit of this process or its cgroup",
}


def raise_if_exhausted(error: Exception, doing: str) -> None:
    """Raise KernelError if `error` means that descriptors or memory have run out; `doing` says what was tried."""
    for code, remedy in _REMEDIES.items():
        # An import that fails has no errno: the words come from dlopen(3); those of ENFILE begin with those of EMFILE.
        if getattr(error, "errno", 0) == code or (isinstance(error, ImportError) and os.strerror(code) in str(error)):
            raise KernelError(code, f"{doing}: {os.strerror(code)}; {remedy}") from None
