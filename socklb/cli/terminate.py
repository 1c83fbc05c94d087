# SPDX-License-Identifier: MIT
"""`socklb terminate`: destroy what is still connected to backends that are gone."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from ..engine.choice import ALL
from ..termination.terminate import backend_target, terminate_connections
from .arguments import (
    add_backend_arguments,
    add_conntrack_arguments,
    add_netns_argument,
    add_report_arguments,
    add_rev_nat_arguments,
    audit_from,
    conntrack_from,
    describe,
    rev_nat_from,
)
from .netns import namespaces_from
from .progress import progress
from .verdicts import run_and_show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..engine.report import Report

_EXAMPLES = """\
examples:
  socklb terminate --dry-run 10.0.0.5:80/TCP   what would be cut on this host
  socklb terminate 10.0.0.5:80/TCP 10.0.0.6:53/UDP [2001:db8::5]:80/TCP
  socklb terminate --rev-nat 10.0.0.5:80/TCP   only what the balancer sent there
  socklb terminate --external 10.0.0.5:80/TCP   also clients on other hosts
  socklb terminate --netns web --audit /var/log/socklb.jsonl 10.0.0.5:80/TCP

The owner of a destroyed socket gets an error at once (ECONNABORTED) and can
reconnect. A v4 address matches v4-mapped v6 sockets too. All backends together
take one pass a namespace. A loopback or link-local address is another one in
each namespace: it is looked for in the current one, or in those of --netns.
Needs CAP_NET_ADMIN, CAP_SYS_ADMIN to enter other namespaces, and CAP_SYS_PTRACE
to see those of other users' processes; root has them all.
--rev-nat needs permission to read the maps (and CAP_BPF before Linux 5.19).
"""
_THEN = "looking for clients of service addresses, and again where there are any"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        run,
        description="Destroy what is still connected to backends that are gone, in every network namespace of this "
        "host.",
        epilog=_EXAMPLES,
    )
    add_backend_arguments(parser, "+")
    add_netns_argument(parser, ALL)
    add_rev_nat_arguments(parser)
    add_conntrack_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="destroy nothing, show what would be destroyed")
    add_report_arguments(parser)


def run(options: argparse.Namespace) -> int:
    conntrack = conntrack_from(options)

    def terminate() -> Report:
        namespaces = namespaces_from(options.netns, ALL)
        with ExitStack() as stack:
            audit = stack.enter_context(audit_from(options))
            rev_nat = stack.enter_context(rev_nat_from(options))
            report_progress = stack.enter_context(progress(True, then=_THEN if conntrack else ""))
            return terminate_connections(
                options.backends,
                namespaces=namespaces,
                rev_nat=rev_nat,
                conntrack=conntrack,
                external=options.external,
                dry_run=options.dry_run,
                audit=audit,
                progress=report_progress,
            )

    _, code = run_and_show(terminate, backend_target, options)
    return code
