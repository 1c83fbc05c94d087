"""A process with exactly the capabilities that it is given, and no way to others.

subprocess.run(..., preexec_fn=with_only(Capability.CAP_NET_ADMIN))
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct
from collections.abc import Callable

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class Capability(enum.IntEnum):
    """linux/capability.h"""

    CAP_DAC_READ_SEARCH = 2
    CAP_NET_ADMIN = 12
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_BPF = 39


def with_only(*capabilities: Capability) -> Callable[[], None]:
    """For `preexec_fn` of a caller that has them all: an ordinary user keeps these over the execution (ambient)."""

    def drop() -> None:
        for number in range(_last_capability() + 1):
            if number not in capabilities:
                _call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
        mask = sum(1 << capability for capability in capabilities)
        low, high = mask & 0xFFFFFFFF, mask >> 32
        header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
        _call(
            "capset", header, struct.pack("=6I", low, low, low, high, high, high)
        )  # effective, permitted, inheritable
        for capability in capabilities:
            _call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, int(capability), 0, 0)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    return drop


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def _call(name: str, *arguments: int | bytes) -> None:
    converted = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(_libc, name)(*converted) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
