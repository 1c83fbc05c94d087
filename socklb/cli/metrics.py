# SPDX-License-Identifier: MIT
"""What `watch --metrics` tells: counts and gauges for Prometheus, health and readiness for the kubelet."""

from __future__ import annotations

import os
import sys
import time
from bisect import bisect_left
from collections import Counter, namedtuple
from contextlib import contextmanager
from errno import errorcode
from ipaddress import ip_address
from itertools import accumulate
from threading import Lock

from .. import __version__
from ..engine.destroy import ANSWER_LOST, IN_THIS_STATE, ONLY_BOUND, SHARED_ADDRESS, SUBFLOW, TIME_LIMIT
from ..engine.policy import LIMIT, LISTENING, NO_OWNER, NOT_CONNECTED, OWN_SESSION
from ..termination.reasons import REASONS as OF_TERMINATION
from ..wire.request import PROTOCOL_NAMES
from .output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Union

    from ..engine.report import Outcome
    from ..sources import Source
    from ..termination.loop import Pass, TerminationLoop
    from ..termination.table import BackendTable

    Number = Union[int, float]
    Sample = tuple[str, Mapping[str, str], Number]
    Answer = tuple[int, str, str]

DEFAULT_ADDRESS = "127.0.0.1"
_PORT_MAX = 0xFFFF

REASONS = frozenset(
    (
        *(OWN_SESSION, LISTENING, NOT_CONNECTED, NO_OWNER, LIMIT, *OF_TERMINATION),
        *(SHARED_ADDRESS, ONLY_BOUND, ANSWER_LOST, TIME_LIMIT, IN_THIS_STATE, SUBFLOW),
    )
)
"""Those that are a label as they are. Others have the text of an error in them, and there is no end of those."""
_OTHER = "other"

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""The upper bounds, in seconds, by which the duration of passes is counted."""

LONGEST_PASS_SECONDS = 600
LONGEST_SILENCE_SECONDS = 180

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN = "text/plain; charset=utf-8"


def parse_address(text: str) -> tuple[str, int]:
    """Where to listen, from [ADDRESS:]PORT. Raises ValueError that says what is wrong, and how to write it."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon:
        host = DEFAULT_ADDRESS
    elif not host:
        raise _misspelt(text, "it has a colon, and no address before it")
    if not (port.isascii() and port.isdigit()):
        raise _misspelt(text, "it has no port")
    if colon and bracketed != (":" in host):
        raise _misspelt(text, "a v6 address, and no other, must be in brackets")
    if len(port) > len(str(_PORT_MAX)) or not 1 <= int(port) <= _PORT_MAX:
        raise _misspelt(text, f"its port is outside 1..{_PORT_MAX}")
    try:
        return str(ip_address(host[1:-1] if bracketed else host)), int(port)
    except ValueError:
        raise _misspelt(text, "what stands before its port is no address; names are not looked up") from None


def _misspelt(text: str, why: str) -> ValueError:
    return ValueError(
        f"--metrics {text!r}: {why}; write it like 9469 (which is {DEFAULT_ADDRESS}:9469), 0.0.0.0:9469 or [::]:9469"
    )


class State(namedtuple("State", "backends last_seen reconnects bad_entries")):
    """What others know, asked at each scrape.

    `backends`: how many are "alive", "down" and "held". `last_seen`: when the source was last heard of, in Unix time,
    None before. `reconnects` to the source, and `bad_entries` of it by kind (few, and named by the package): all since
    the start.
    """

    __slots__ = ()
    backends: Mapping[str, int]
    last_seen: float | None
    reconnects: int
    bad_entries: Mapping[str, int]


class Metrics:
    """Counts what the passes of the loop did. `text` is all of it in the text format of Prometheus, with what `state`
    answers by then; any thread may call it. The number of label sets does not grow with backends or namespaces.
    """

    def __init__(self, version: str, state: Callable[[], State]) -> None:
        python, kernel = sys.version.split()[0], os.uname().release
        self._build = {"version": version, "python": python, "kernel": kernel}
        self._state = state
        self._start_time = time.time()  # the process' own is as long before as Python takes to start
        self._lock = Lock()
        self._sockets: Counter[tuple[str, str, str]] = Counter()
        self._passes = dict.fromkeys(("ok", "failed", "given_up"), 0)
        self._durations, self._seconds, self._waited = [0] * (len(BUCKETS) + 1), 0.0, 0.0
        self._namespaces = dict.fromkeys(("searched", "unsearched"), 0)

    def on_pass(self, done: Pass) -> None:
        """Count one pass: for the loop, which is held up for no scrape."""
        report = done.report
        outcomes = report.outcomes if report else ()
        sockets = Counter((one.verdict, _reason(one), PROTOCOL_NAMES[one.client.protocol]) for one in outcomes)
        searched = len(report.namespaces) - len(report.errors) if report else 0
        unsearched = len(report.errors) + sum(one.count for one in report.unsearched) if report else 0
        with self._lock:
            self._sockets += sockets
            self._passes["given_up" if done.given_up else "failed" if done.failed else "ok"] += 1
            self._durations[bisect_left(BUCKETS, done.seconds)] += 1
            self._seconds += done.seconds
            self._waited += done.waited
            self._namespaces = {"searched": searched, "unsearched": unsearched}

    def text(self) -> str:
        lines = []
        for name, kind, meaning, samples in self._families():
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{suffix}{_labels(labels)} {value}" for suffix, labels, value in samples]
        return "\n".join([*lines, ""])

    def _families(self) -> Iterator[tuple[str, str, str, Iterable[Sample]]]:
        """Each metric: its name, type, meaning, and samples."""
        state = self._state()
        with self._lock:
            sockets, passes, namespaces = dict(self._sockets), dict(self._passes), self._namespaces
            durations, seconds, waited = [*accumulate(self._durations)], self._seconds, self._waited
        buckets = zip([*(f"{bound:g}" for bound in BUCKETS), "+Inf"], durations)
        sums: list[Sample] = [("_sum", {}, seconds), ("_count", {}, durations[-1])]
        labels = ("outcome", "reason", "protocol")
        yield (
            "socklb_sockets_total",
            "counter",
            "Sockets and conntrack entries that led to backends that went down, by what became of them.",
            [("", dict(zip(labels, values)), count) for values, count in sorted(sockets.items())],
        )
        yield (
            "socklb_passes_total",
            "counter",
            "Passes through the namespaces: done, to be repeated where they failed, or repeated too often.",
            _by("result", passes),
        )
        yield (
            "socklb_pass_duration_seconds",
            "histogram",
            "How long passes took.",
            [*(("_bucket", {"le": bound}, count) for bound, count in buckets), *sums],
        )
        yield "socklb_namespaces", "gauge", "Network namespaces of the last pass.", _by("state", namespaces)
        yield "socklb_backends", "gauge", "Backends by state.", _by("state", state.backends)
        yield (
            "socklb_source_last_seen_timestamp_seconds",
            "gauge",
            "When the source of backends was last heard of.",
            _one(state.last_seen),
        )
        yield (
            "socklb_source_reconnects_total",
            "counter",
            "How often the connection to the source was made anew.",
            _one(state.reconnects),
        )
        yield (
            "socklb_source_bad_entries_total",
            "counter",
            "Entries of the source that were left out.",
            _by("kind", state.bad_entries),
        )
        yield (
            "socklb_duty_wait_seconds_total",
            "counter",
            "How long passes have waited, so that the process uses a fifth of one processor at most.",
            _one(waited),
        )
        yield "socklb_build_info", "gauge", "Always 1; what runs here.", [("", self._build, 1)]
        yield "process_start_time_seconds", "gauge", "When the process was started.", _one(self._start_time)


def _by(label: str, values: Mapping[str, Number]) -> list[Sample]:
    return [("", {label: name}, value) for name, value in values.items()]


def _one(value: Number | None) -> list[Sample]:
    return [] if value is None else [("", {}, value)]


def _labels(labels: Mapping[str, str]) -> str:
    return f"{{{','.join(f'{name}={_quoted(value)}' for name, value in labels.items())}}}" if labels else ""


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _reason(outcome: Outcome) -> str:
    if not outcome.reason or outcome.reason in REASONS:
        return outcome.reason
    return errorcode.get(outcome.error or 0, _OTHER)


def why_unhealthy(why_ended: str, pass_began: float | None) -> str:
    """The reason for the kubelet to start the process anew, "" for none: `why_ended`, of the loop, "" while it lives;
    or the pass that began then (by monotonic(), None between passes) goes on for too long.
    """
    if not why_ended and pass_began is not None and time.monotonic() - pass_began > LONGEST_PASS_SECONDS:
        return f"a pass goes on for more than {LONGEST_PASS_SECONDS // 60} minutes"
    return why_ended


def why_unready(has_table: bool, last_heard: float | None) -> str:
    """The reason why backends that go down might not be noticed, "" for none. `last_heard`: when anything came from the
    source (by monotonic()), None for one whose silence means nothing.
    """
    if not has_table:
        return "the source has not given a whole table yet"
    if last_heard is not None and time.monotonic() - last_heard > LONGEST_SILENCE_SECONDS:
        return f"nothing has come from the source for more than {LONGEST_SILENCE_SECONDS} seconds"
    return ""


def routes(
    metrics: Metrics, *, healthz: Callable[[], str], readyz: Callable[[], str]
) -> dict[str, Callable[[], Answer]]:
    """What a server answers on which path: status, content type and text. `healthz` and `readyz` return what is wrong,
    or "".
    """
    return {
        "/metrics": lambda: (200, _PROMETHEUS, metrics.text()),
        "/healthz": lambda: _verdict(healthz()),
        "/readyz": lambda: _verdict(readyz()),
    }


@contextmanager
def served(where: str, source: Source, table: BackendTable, loop: TerminationLoop) -> Iterator[Callable[[Pass], None]]:
    """While active, all of this is served at [ADDRESS:]PORT. Yields the function that takes each pass.

    Raises ValueError for an address that cannot be had, NotSupported.
    """
    address, port = parse_address(where)
    from .metrics_server import serving  # where it is missing, only --metrics is

    status = source.status
    metrics = Metrics(
        __version__,
        lambda: State(
            {"alive": table.alive - status.held, "down": len(loop.outstanding), "held": status.held},
            status.last_seen,
            status.reconnects,
            status.bad_entries,
        ),
    )

    def healthz() -> str:
        return why_unhealthy("" if loop.is_running else "it follows nothing now", loop.pass_began)

    def readyz() -> str:
        return why_unready(status.has_table, status.last_heard if status.speaks_up else None)

    with serving(address, port, routes(metrics, healthz=healthz, readyz=readyz)):
        yield metrics.on_pass


def _verdict(wrong: str) -> Answer:
    return (503 if wrong else 200), _PLAIN, f"{printable(wrong) or 'ok'}\n"
