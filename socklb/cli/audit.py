"""`--audit`: a record of each verdict."""

from __future__ import annotations

from contextlib import contextmanager

from ..errors import AuditError
from .output import error_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ..ledger import Audit


def add_audit_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audit",
        metavar="FILE",
        help="append a JSON line for each verdict: who asked, the socket, what became of it; - is standard error",
    )


@contextmanager
def audit_from(options: argparse.Namespace) -> Iterator[Audit | None]:
    """The audit that was asked for, or None. Raises ValueError for a file that cannot be opened."""
    if options.audit is None:
        yield None
        return
    from ..audit import AuditFile  # few ask for it

    try:
        audit = AuditFile(options.audit)
    except AuditError as error:
        raise ValueError(error_text(error)) from None
    with audit:
        yield audit
