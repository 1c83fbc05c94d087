# SPDX-License-Identifier: MIT
"""What can go wrong, in two branches: what the kernel answered, and what it could not have meant."""

from __future__ import annotations

import errno as _errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SocklbError(Exception):
    """The root of every error that is not a wrong argument (those are ValueError or TypeError).

    `report` is the account of a run that this error ended, a DestroyReport or a NamespacesReport, None where no run
    was under way.
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
        return (_rebuild_malformed, (self.what, self.offset, self.expected, self.got))


def _rebuild_malformed(what: str, offset: int, expected: object, got: object) -> MalformedMessage:
    return MalformedMessage(what, offset=offset, expected=expected, got=got)


class KernelError(SocklbError, OSError):
    """An errno that the kernel answered; the message carries its extended-ack text, if it sent one."""


class NotPermitted(KernelError):
    """EPERM: the message names the capability that is missing and where it has to be held."""


class NotSupported(KernelError):
    """The kernel was built without something, or this Python was: the message names it, a CONFIG_ option as a rule."""


class AuditError(SocklbError, OSError):
    """An audit file that cannot be written: nothing is destroyed any more, for there would be no record of it."""


class RunStopped(SocklbError):
    """Something else ended the run that this was a part of: an interrupt, or an error in another namespace."""


class UnboundedFilter(SocklbError, ValueError):
    """A filter that bounds no endpoint was given to a call that destroys."""


def mark_not_told(doing: str) -> NotPermitted:
    return NotPermitted(
        _errno.EPERM,
        f"{doing}: not permitted: the kernel tells marks only to CAP_NET_ADMIN in the user namespace that owns the "
        "network namespace",
    )


def kernel_error(code: int, doing: str, extended_ack: str = "") -> KernelError:
    """The error for an errno answered while `doing`: what happened, to what, and what to do about it."""
    said = f" ({extended_ack})" if extended_ack else ""
    if code == _errno.EPERM:
        return NotPermitted(
            code,
            f"{doing}: not permitted{said}: it needs CAP_NET_ADMIN in the user namespace that owns the network "
            "namespace; run as root, or grant the capability",
        )
    if code == _errno.EOPNOTSUPP:
        return NotSupported(
            code, f"{doing}: not supported{said}: this kernel was built without CONFIG_INET_DIAG_DESTROY"
        )
    return KernelError(code, f"{doing}: {os.strerror(code)}{said}")
