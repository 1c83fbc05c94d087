# SPDX-License-Identifier: MIT
"""Arguments that several commands share: which sockets, in which namespaces, and how the result is reported."""

from __future__ import annotations

from contextlib import contextmanager
from errno import EACCES

from ..errors import AuditError, NotPermitted
from ..features import has, missing, standard_module
from ..filters import SocketFilter
from ..filters.bounds import hinges_on
from ..filters.conditions import leaves
from ..filters.property_conditions import Pid
from ..kernel.names import process_sockets
from ..states import named_states
from ..wire.socket_id import AF_INET, AF_INET6
from .holders import missing_capabilities
from .output import error_text, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from ..engine.audit import AuditFile
    from ..filters import Condition
    from ..filters.backend import Backend
    from ..reverse_nat import RevNatMaps

FILTER_HELP = """\
FILTER, one quoted argument or several words, is the language of ss(8):
  dst 10.0.0.5 and dport = 5432
  dst 10.0.0.5:5432                 the same; [2001:db8::1]:53 for v6
  dst 10.0.0.0/16 or dst 2001:db8::/32
  ( dport = :80 or dport = :https ) and not src 10.1.0.0/16
  sport >= 1024     dev eth0     fwmark 0x10/0xff
  cgroup system.slice/ssh.service   or system.slice/ for all below it too
  uid postgres     pid 4711         its user; the process that holds it
  stalled 30s      idle 2h          TCP: what was sent is not acknowledged;
                                    no data either way (ms, s, m, h)
A v4 address matches v4-mapped v6 sockets too: [::ffff:10.0.0.5] is 10.0.0.5.
A v6 address whose end could be a port needs brackets. States may come first:
  state established,syn-sent dst 10.0.0.5     exclude time-wait dport = :80
"""


_CONNTRACK_HELP = """\
Clients of a service address (kube-proxy, Docker, any DNAT) know nothing of the
backend, but conntrack does: see `socklb flows`. Of TCP the socket is destroyed
and the conntrack entry deleted; of UDP the entry alone ("rerouted"): the socket
lives on, to another backend. TCP clients on other hosts are skipped; with
--external their entries are deleted ("cleared"), and they get a reset when they
send. The balancer's rules may lag: where something was cut it is looked again
after 2 s, and as long as that finds more after 4, 8, 16 and 32 s. To look, too,
needs CAP_NET_ADMIN, in a dry run as well.
"""


def describe(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], *, epilog: str, description: str = ""
) -> None:
    """Say what a command does, as a function and in its help text: more than in the list of commands, if need be."""
    parser.description, parser.epilog = description or parser.description, epilog
    parser.set_defaults(run=run, fail=parser.error)


def check_json(options: argparse.Namespace) -> None:
    """Raises NotSupported where an option needs JSON, and this Python has none: before anything is done."""
    for name in ("json", "audit", "source"):
        if getattr(options, name, None):
            standard_module("json", f"--{name}")


def add_filter_arguments(parser: argparse.ArgumentParser, *, may_show_all: bool) -> None:
    """Those of FILTER and SELECTION, with the letters of ss(8); `may_show_all`: with --all."""
    parser.add_argument("filter", metavar="FILTER", nargs="*", default=[], help="which sockets; see below")
    parser.add_argument("-t", "--tcp", action="store_true", help="TCP sockets (without -t and -u: both)")
    parser.add_argument("-u", "--udp", action="store_true", help="UDP sockets")
    parser.add_argument("-4", "--ipv4", action="store_true", help="IPv4 sockets (without -4 and -6: both)")
    parser.add_argument("-6", "--ipv6", action="store_true", help="IPv6 sockets, v4-mapped ones too")
    parser.add_argument(
        "--state",
        metavar="S[,S...]",
        action="extend",
        type=_states,
        help="a state (established, syn-sent, fin-wait-1, time-wait, listening, ...) or a group of them (all, "
        "connected, synchronized, bucket, big); may be repeated; default: for TCP every state but CLOSE, "
        "TIME_WAIT and BOUND_INACTIVE, for UDP all",
    )
    if may_show_all:
        parser.add_argument("-a", "--all", action="store_true", help="every state: as --state all")
    else:
        advice = "write --state all, and --state listening to destroy those too"
        parser.add_argument("-a", "--all", action="refuse", advice=advice)
    parser.add_argument("-n", "--numeric", action="store_true", help="numbers, not names: as always")
    for flags, advice in _OF_SS.items():
        parser.add_argument(*flags.split(), action="refuse", advice=advice)


_OF_SS = {
    "-K --kill": "write: socklb destroy FILTER",
    "-l --listening": "write --state listening",
    "-x --unix": "unix sockets cannot be destroyed: the kernel's SOCK_DESTROY is for TCP and UDP",
    "-w --raw": "sockets of TCP and UDP alone are shown and destroyed: write -t or -u",
    "-r --resolve": "names are not looked up",
    "-f --family": "write -4 or -6",
    "-N --net": "write --netns N",
}
"""Options of ss(8) that are not taken, and what to write."""


def _states(text: str) -> list[str]:
    words = text.split(",")
    named_states(words)  # or ValueError
    return words


def filters_from(options: argparse.Namespace) -> list[SocketFilter]:
    """One filter for each protocol asked for. Raises ValueError with the word at fault and its column."""
    both = options.tcp == options.udp
    protocols = [name for name in ("tcp", "udp") if both or getattr(options, name)]
    family = None if options.ipv4 == options.ipv6 else AF_INET if options.ipv4 else AF_INET6
    states = options.state
    text = " ".join(options.filter)
    if getattr(options, "all", False):
        if states:
            raise ValueError("--all is every state, and --state names some: write one of them")
        if text.lower().split()[:1] != ["state"]:  # as with ss, what is named counts
            states = ["all"]
    filters = [SocketFilter.parse(text, protocol, states=states, family=family) for protocol in protocols]
    _check_processes(filters[0].where)
    return [filter for filter in filters if not filter.is_unknowable] if both else filters


def _check_processes(condition: Condition) -> None:
    """Say which processes may not be looked at. Raises NotPermitted if nothing can match without these, ValueError for
    one that is not there.
    """
    named = {test for test in leaves(condition) if isinstance(test, Pid)}
    hidden = {test for test in named if process_sockets(test.pid, test.start) is None}
    for test in sorted(hidden, key=str):
        why = missing_capabilities() or "it is in another user or pid namespace"
        what = f"what process {test.pid} holds may not be looked at: {why}"
        if hinges_on(condition, hidden.__contains__):
            raise NotPermitted(EACCES, what)
        warn(f"{what}; neither '{test}' nor its negation matches")


def add_backend_arguments(parser: argparse.ArgumentParser, nargs: str) -> None:
    parser.add_argument(
        "backends",
        metavar="BACKEND",
        nargs=nargs,
        type=_backend,
        help="ADDRESS:PORT/TCP or /UDP; v6 in brackets, a link-local address with its link: [fe80::1%%eth0]:80/TCP",
    )


def _backend(text: str) -> Backend:
    if text.startswith("/"):
        raise ValueError(f"{text!r} is not a backend; a directory of maps is --rev-nat-dir {text}")
    from ..filters.backend import Backend  # few commands take one

    return Backend.parse(text)


def add_processes_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--processes", action="store_true", help="show the processes that hold the socket, of those one may see"
    )


def add_netns_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--netns",
        metavar="N",
        action="append",
        help="the network namespace to work in: current (the one this runs in), all, the NAME of a pinned one as "
        "ip-netns(8) has it, the PID of a process in it, or a PATH such as /proc/PID/ns/net; may be repeated; "
        f"default: {default}",
    )
    parser.add_argument(
        "--readable-only",
        action="store_true",
        help="expect namespaces that may not be looked at or entered: say so once, and end with 0 all the same",
    )


def add_rev_nat_dir_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rev-nat-dir",
        metavar="DIR",
        help=_rev_nat_help(
            "where the reverse-NAT maps are pinned; default: /sys/fs/bpf/tc/globals, where Cilium pins them"
        ),
    )


def add_rev_nat_arguments(parser: argparse.ArgumentParser) -> None:
    """A copy that lacks the folder does not offer them, and says so if they are given."""
    parser.add_argument(
        "--rev-nat",
        action="store_true",
        help=_rev_nat_help(
            "spare sockets that the balancer's reverse-NAT maps have no entry for: it did not send them there"
        ),
    )
    add_rev_nat_dir_argument(parser)
    if not has("reverse_nat"):
        parser.epilog = _without(parser.epilog, "--rev-nat")


def _without(epilog: str | None, option: str) -> str:
    return "\n".join(line for line in (epilog or "").splitlines() if option not in line)


def add_conntrack_arguments(parser: argparse.ArgumentParser) -> None:
    """A copy that lacks the folder does not offer them, and says so if they are given."""
    from argparse import SUPPRESS

    is_there = has("conntrack")
    either = parser.add_mutually_exclusive_group() if is_there else parser
    for where, word, text in (
        (either, "--conntrack", "end with 3 or 4 where conntrack cannot be asked; default: say so, and do the rest"),
        (either, "--no-conntrack", "do not ask conntrack: leave out the clients of service addresses"),
        (parser, "--external", "also delete the conntrack entries of TCP clients that have no socket on this host"),
    ):
        where.add_argument(word, action="store_true", help=text if is_there else SUPPRESS)
    parser.epilog = f"{parser.epilog}\n{_CONNTRACK_HELP}" if is_there else _without(parser.epilog, "--external")


def conntrack_from(options: argparse.Namespace) -> bool | str:
    """What calls take. Bad usage leaves through SystemExit(2); raises ValueError where the folder is missing."""
    if not has("conntrack"):
        for word in ("conntrack", "external"):
            if getattr(options, word):
                raise ValueError(missing(f"--{word}", "conntrack"))
        return False
    if options.external and options.no_conntrack:
        options.fail("argument --external: not allowed with argument --no-conntrack")
    return "auto" if options.conntrack == options.no_conntrack else bool(options.conntrack)


def _rev_nat_help(text: str) -> str:
    from argparse import SUPPRESS

    return text if has("reverse_nat") else SUPPRESS


@contextmanager
def rev_nat_from(options: argparse.Namespace) -> Iterator[RevNatMaps | None]:
    """The balancer's maps if --rev-nat asks for them, or None. Raises ValueError for a directory without it."""
    if options.rev_nat:
        with open_rev_nat(options.rev_nat_dir) as maps:
            yield maps
    elif options.rev_nat_dir is not None:
        raise ValueError("--rev-nat-dir needs --rev-nat")
    else:
        yield None


def open_rev_nat(directory: str | None) -> RevNatMaps:
    """The balancer's maps in a directory, or where Cilium pins them."""
    if not has("reverse_nat"):
        raise ValueError(missing("--rev-nat", "reverse_nat"))
    from ..reverse_nat import RevNatMaps

    return RevNatMaps.open() if directory is None else RevNatMaps.open(directory)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object: the sums, and a verdict for each socket")
    add_audit_argument(parser)


def add_audit_argument(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(audit_problem="")
    parser.add_argument(
        "--audit",
        metavar="FILE",
        help="append a JSON line for each verdict: who asked, the socket, what became of it; - is standard error",
    )


@contextmanager
def audit_from(options: argparse.Namespace) -> Iterator[AuditFile | None]:
    """The audit that was asked for, or None. Raises ValueError for a file that cannot be opened.

    If it cannot be closed, that is said, and left in `options.audit_problem`.
    """
    if options.audit is None:
        yield None
        return
    from ..engine.audit import AuditFile

    try:
        audit = AuditFile(options.audit)
    except AuditError as error:
        raise ValueError(error_text(error)) from None
    try:
        yield audit
    finally:
        try:
            audit.close()
        except AuditError as error:
            options.audit_problem = error_text(error)  # the report is shown all the same
            warn(options.audit_problem)
