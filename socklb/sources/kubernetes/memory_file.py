# SPDX-License-Identifier: MIT
"""Files that are in memory alone, for a library that takes secrets by their path: memfd_create(2)."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MFD_NOEXEC_SEAL = 0x0008  # the sysctl vm.memfd_noexec may require it; Linux before 6.3 does not know it


@contextmanager
def memory_file(content: bytes) -> Iterator[str]:
    """While active, the path of a file with this content. Raises OSError where there can be none."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "this Python was built without os.memfd_create()")
    try:
        descriptor = os.memfd_create("socklb", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.memfd_create("socklb", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        path = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(path):
            raise OSError(errno.ENOENT, "there is no /proc here")
        file.write(content)
        file.flush()
        yield path
