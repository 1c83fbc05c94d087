# SPDX-License-Identifier: MIT
"""`socklb terminate`: cut what is still connected to backends that are gone."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from ..errors import SocklbError
from ..filters.backend import Backend
from ..termination.terminate import TerminationReport, backend_as_subject, terminate_connections
from .arguments import (
    ALL,
    add_audit_argument,
    add_netns_argument,
    add_rev_nat_argument,
    audit_from,
    open_rev_nat,
)
from .help import HelpFormatter
from .namespaces import namespaces_from
from .output import BAD_INPUT, DONE, SOME_FAILED, error_text, exit_code
from .progress import progress
from .verdicts import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..kernel.namespaces import NetworkNamespace

_EXAMPLES = """\
examples:
  socklb terminate --dry-run 10.0.0.5:80/TCP                 what would be cut, anywhere on this host
  socklb terminate 10.0.0.5:80/TCP 10.0.0.6:53/UDP [2001:db8::5]:80/TCP
  socklb terminate --rev-nat 10.0.0.5:80/TCP                 only what the balancer itself sent there
  socklb terminate --netns web --audit /var/log/socklb.jsonl 10.0.0.5:80/TCP

The owner of a cut socket gets an error at once (ECONNABORTED) and can reconnect. A v4 address means v4-mapped v6
sockets too. All backends together take one pass a namespace. Needs CAP_NET_ADMIN, CAP_SYS_ADMIN to enter other
namespaces, CAP_SYS_PTRACE to see those of other users' processes, and for --rev-nat permission to read the maps (and
CAP_BPF before Linux 5.19); root has them all.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "terminate",
        help="cut what is still connected to backends that are gone",
        description="Cut what is still connected to backends that are gone, in every network namespace of this host.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "backends", metavar="BACKEND", nargs="+", type=_backend, help="ADDRESS:PORT/TCP or /UDP; v6 in brackets"
    )
    add_netns_argument(parser, ALL)
    add_rev_nat_argument(parser, "spare what the balancer's reverse-NAT maps in DIR do not know: it was not sent there")
    parser.add_argument("--dry-run", action="store_true", help="cut nothing, tell what would be")
    parser.add_argument("--json", action="store_true", help="one JSON object: the sums, and a verdict for each socket")
    add_audit_argument(parser)
    parser.set_defaults(run=run)


def _backend(text: str) -> Backend:
    if text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no backend; a directory of maps is given as --rev-nat={text}")
    try:
        return Backend.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(options: argparse.Namespace) -> int:
    try:
        report = _terminate(options)
    except (SocklbError, KeyboardInterrupt) as error:
        if exit_code(error) != BAD_INPUT:
            _show(getattr(error, "report", None) or TerminationReport(options.backends), options, error)
        raise
    _show(report, options, None)
    return SOME_FAILED if report.failed or report.errors else DONE


def _terminate(options: argparse.Namespace) -> TerminationReport:
    namespaces = namespaces_from(options.netns or [ALL])
    with ExitStack() as stack:
        audit = stack.enter_context(audit_from(options))
        rev_nat = None if options.rev_nat is None else stack.enter_context(open_rev_nat(options.rev_nat))
        return terminate_connections(
            options.backends,
            namespaces=namespaces,
            rev_nat=rev_nat,
            dry_run=options.dry_run,
            audit=audit,
            progress=stack.enter_context(progress()),
        )


def _show(report: TerminationReport, options: argparse.Namespace, error: BaseException | None) -> None:
    more = {
        "namespaces": [_namespace_record(namespace, report) for namespace in report.namespaces],
        "skipped_namespaces": [skipped._asdict() for skipped in report.skipped_namespaces],
        "backends": [{"backend": str(backend), **counts.sums()} for backend, counts in report.backends.items()],
    }
    show(report, backend_as_subject, options, error, more)


def _namespace_record(namespace: NetworkNamespace, report: TerminationReport) -> dict[str, Any]:
    error = report.errors.get(namespace)
    return {
        "namespace": namespace.name,
        "path": namespace.path,
        "inode": namespace.inode,
        **report.reports[namespace].sums(),
        "error": None if error is None else error_text(error),
    }
