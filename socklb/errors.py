# SPDX-License-Identifier: MIT
"""What can go wrong, in two branches: errors that the kernel reported, and replies that no kernel sends."""

from __future__ import annotations

import errno as _errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SocklbError(Exception):
    """The root of every error that is not a wrong argument (those are ValueError or TypeError).

    `report`: the Report of the run that this error ended; None if no run had begun.
    """

    report: Any = None


class MalformedMessage(SocklbError):
    """Bytes that no kernel sends: cut, overlong, from a foreign sender, or out of turn.

    `offset` is where in the reply, `expected` what had to be there, `got` what was.
    """

    def __init__(self, what: str, *, offset: int, expected: object, got: object) -> None:
        super().__init__(f"{what} at offset {offset}: expected {expected}, got {got}")
        self.what, self.offset, self.expected, self.got = what, offset, expected, got

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_malformed, (self.what, self.offset, self.expected, self.got), self.__dict__)


def _rebuild_malformed(what: str, offset: int, expected: object, got: object) -> MalformedMessage:
    return MalformedMessage(what, offset=offset, expected=expected, got=got)


class KernelError(SocklbError, OSError):
    """An errno from the kernel; the message carries its extended-ack text, if it sent one."""


class NotPermitted(KernelError):
    """Not permitted: the message names the capability that is missing and where it has to be held."""


class NotSupported(KernelError):
    """This kernel or this Python was built without something; the message names it, usually a CONFIG_ option."""


class AuditError(SocklbError, OSError):
    """The audit file cannot be written: destroying stops, because kills could no longer be recorded."""


class RunStopped(SocklbError):
    """A run was stopped from elsewhere: by an interrupt, or by an error in another namespace."""


class UnboundedFilter(SocklbError, ValueError):
    """A filter that could match everything was given to a call that destroys."""


def mark_hidden(doing: str) -> NotPermitted:
    """The error for a condition on SO_MARK without the capability to read marks."""
    return NotPermitted(
        _errno.EPERM,
        f"{doing}: not permitted: the kernel shows marks only to CAP_NET_ADMIN in the user namespace that owns the "
        "network namespace",
    )


def kernel_error(code: int, doing: str, extended_ack: str = "") -> KernelError:
    """The error for an errno answered while `doing`: what happened, to what, and what to do about it."""
    detail = f" ({extended_ack})" if extended_ack else ""
    if code == _errno.EACCES:
        return NotPermitted(code, f"{doing}: not permitted{detail}: a security module (SELinux, AppArmor) forbids it")
    if code == _errno.EPERM:
        return NotPermitted(
            code,
            f"{doing}: not permitted{detail}: it needs CAP_NET_ADMIN in the user namespace that owns the network "
            "namespace; run as root, or grant the capability",
        )
    if code == _errno.EOPNOTSUPP:
        return NotSupported(
            code, f"{doing}: not supported{detail}: this kernel was built without CONFIG_INET_DIAG_DESTROY"
        )
    return KernelError(code, f"{doing}: {os.strerror(code)}{detail}")
