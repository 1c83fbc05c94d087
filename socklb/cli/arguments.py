# SPDX-License-Identifier: MIT
"""Arguments that several commands share: which sockets are meant, where, and what is asked or told about them."""

from __future__ import annotations

import argparse
from contextlib import contextmanager

from ..errors import AuditError
from ..filters import SocketFilter
from ..states import named_states
from .output import error_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..engine.ledger import Audit
    from ..reverse_nat.maps import RevNatMaps

FILTER_HELP = """\
FILTER, one quoted argument or several words, is the language of ss(8):
  dst 10.0.0.5 and dport = 5432
  dst 10.0.0.5:5432                 the same; [2001:db8::1]:53 for v6
  dst 10.0.0.0/8 or dst 2001:db8::/32
  ( dport = :80 or dport = :https ) and not src 10.1.0.0/16
  sport >= 1024     dev eth0     fwmark 0x10/0xff     cgroup system.slice/ssh.service
A v4 address means v4-mapped v6 sockets too. States are not part of it: use --state.
"""


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("filter", metavar="FILTER", nargs="*", help="which sockets; see below")
    parser.add_argument("--tcp", action="store_true", help="TCP sockets (without --tcp and --udp: both)")
    parser.add_argument("--udp", action="store_true", help="UDP sockets")
    parser.add_argument(
        "--state",
        metavar="S",
        action="append",
        type=_state,
        help="a state (established, syn-sent, fin-wait-1, time-wait, listening, ...) or a group of them (all, "
        "connected, synchronized, bucket, big); may be repeated; default: for TCP every state but CLOSE, "
        "TIME_WAIT and BOUND_INACTIVE, for UDP all",
    )


def _state(word: str) -> str:
    try:
        named_states(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return word


def filters_from(options: argparse.Namespace) -> list[SocketFilter]:
    """One filter for each protocol asked for. Raises ValueError with the word at fault and its column."""
    both = options.tcp == options.udp
    protocols = [name for name in ("tcp", "udp") if both or getattr(options, name)]
    text = " ".join(options.filter)
    return [SocketFilter.parse(text, protocol, states=options.state) for protocol in protocols]


ALL = "all"
REV_NAT = "--rev-nat"


def add_rev_nat_argument(parser: argparse.ArgumentParser, help: str) -> None:
    """Its DIR is behind a "=" (`spelled_out`), and so the help text has it (`HelpFormatter`)."""
    parser.add_argument(
        REV_NAT, metavar="[=DIR]", help=f"{help}; default DIR: /sys/fs/bpf/tc/globals, where Cilium pins"
    )


def spelled_out(words: Sequence[str]) -> list[str]:
    """A bare --rev-nat stands for its default: argparse would take the next word for its value."""
    plain = words[: words.index("--")] if "--" in words else words
    return [f"{REV_NAT}=" if word == REV_NAT else word for word in plain] + [*words[len(plain) :]]


def open_rev_nat(directory: str) -> RevNatMaps:
    """The balancer's maps; "" is the default directory."""
    from ..reverse_nat.maps import DEFAULT_DIRECTORY, RevNatMaps  # few ask for them

    return RevNatMaps.open(directory or DEFAULT_DIRECTORY)


def add_netns_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--netns",
        metavar="N",
        action="append",
        help="in which network namespace: host (the one this runs in), all, a pinned NAME as ip-netns(8) has it, or a "
        f"PATH such as /proc/PID/ns/net; may be repeated; default: {default}",
    )


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
    from ..engine.audit import AuditFile  # few ask for it

    try:
        audit = AuditFile(options.audit)
    except AuditError as error:
        raise ValueError(error_text(error)) from None
    with audit:
        yield audit
