"""`watch --metrics`: the address, what is counted, its text form, health and readiness."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import InetSocket, KernelError, NetworkNamespace, Outcome, Report, UnsearchedNamespace
from socklb.cli.metrics import REASONS, Metrics, State, parse_address, routes, why_unhealthy, why_unready
from socklb.engine import destroy, policy
from socklb.engine.report import Counts
from socklb.termination import reasons as of_termination
from socklb.termination.loop import Pass
from socklb.wire.request import PROTOCOL_NAMES

from ..conntrack.ctnetlink import flow
from ..fake_kernel import row

HERE, THERE = (NetworkNamespace(f"net{n}", f"/run/netns/net{n}", 4, n) for n in range(2))
STATE = State({"alive": 3, "down": 1, "held": 0}, 1.5e9, 7, {'a "bad"\\\nkind': 2})
WHERE = ("127.0.0.1", 9469)
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def test_an_address_and_a_port_or_a_port_alone() -> None:
    texts = ("9469", "0.0.0.0:1", "[::]:9400", "[fe80::1%eth0]:65535")
    assert [*map(parse_address, texts)] == [WHERE, ("0.0.0.0", 1), ("::", 9400), ("fe80::1%eth0", 65535)]


@pytest.mark.parametrize(
    ("why", "texts"),
    [
        ("it has no port", ["127.0.0.1", "[::1]", "", "1²"]),
        ("in brackets", ["::1:9400", "[127.0.0.1]:9400"]),
        ("is no address", ["localhost:9400", "[::1%]:9400"]),
        ("no address before it", [":9400"]),
        (r"outside 1\.\.65535", ["0", "[::]:65536", "1" * 9999]),
    ],
)
def test_what_is_no_address_is_told_how_to_be_written(why: str, texts: list[str]) -> None:
    for text in texts:
        how = r"write it like 9469 \(which is 127.0.0.1:9469\), 0.0.0.0:9469 or \[::\]:9469"
        with pytest.raises(ValueError, match=f"^--metrics '.*{why}.*; {how}$"):
            parse_address(text)


def parsed(text: str) -> Series:
    """The samples of a text in format 0.0.4, by name and labels; it fails where the grammar is not kept."""
    series: Series = {}
    names: list[str] = []
    kind, word, label = "", "[a-zA-Z_:][a-zA-Z0-9_:]*", r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\[\\"n]|[^\\"\n])*)"'
    *lines, end = text.split("\n")
    assert end == ""
    for line in lines:
        if found := re.fullmatch(rf"# HELP ({word}) (?:\\\\|\\n|[^\\])+", line):
            assert found[1] not in names
            names.append(found[1])
        elif found := re.fullmatch(f"# TYPE ({word}) (counter|gauge|histogram)", line):
            assert found[1] == names[-1]
            kind = found[2]
        else:
            found = re.fullmatch(rf"({word})(?:\{{({label}(?:,{label})*)\}})? ([0-9.e+-]+)", line)
            assert found
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            assert found[1] in [names[-1] + suffix for suffix in suffixes]
            key = found[1], frozenset(re.findall(label, found[2] or ""))
            assert key not in series
            series[key] = float(found[7])
            assert kind == "gauge" or series[key] >= 0
    return series


def of(series: Series, name: str) -> dict[str, float]:
    """The samples of one metric by the value of their only label, "" without one."""
    return {next((value for _, value in labels), ""): value for (each, labels), value in series.items() if each == name}


def a_pass(report: Report | None = None, *, seconds: float = 0.0, failed: Any = (), given_up: Any = ()) -> Pass:
    rest: Any = {"backends": [], "error": None, "is_second_pass": False, "is_retry": False, "waited": seconds / 2}
    return Pass(**rest, report=report, failed=failed, given_up=given_up, seconds=seconds)


def outcome(verdict: str, reason: str, error: int | None, protocol: int) -> Outcome:
    """Of a socket, or where it was about that alone of a conntrack entry."""
    if verdict in ("rerouted", "cleared"):
        return Outcome(None, verdict, reason, error, HERE, flow(f"10.96.0.10:80/{PROTOCOL_NAMES[protocol]}"))
    return Outcome(InetSocket(row(1), protocol), verdict, reason, error, HERE)


def reported(outcomes: list[Outcome]) -> Report:
    report = Report()
    report.add_namespace(HERE)
    report.outcomes += outcomes
    return report


reasons = st.sampled_from(["", *sorted(REASONS)]) | st.text()
outcomes = st.builds(
    outcome, st.sampled_from(Counts._fields), reasons, st.none() | st.integers(0, 200), st.sampled_from((6, 17))
)


class TestMetrics:
    @given(st.lists(st.lists(outcomes)))
    def test_sockets_are_the_sums_of_the_reports_by_labels_that_do_not_multiply(
        self, passes: list[list[Outcome]]
    ) -> None:
        metrics, sums, found = Metrics("1", lambda: STATE), Counter[str](), Counter[str]()
        for each in passes:
            report = reported(each)
            metrics.on_pass(a_pass(report))
            sums.update(report.counts._asdict())
        for (name, labels), value in parsed(metrics.text()).items():
            if name == "socklb_sockets_total":
                by_name = dict(labels)
                found[by_name["outcome"]] += int(value)
                assert by_name["protocol"] in ("tcp", "udp")
                assert by_name["reason"] in {"", "other", *REASONS} or re.fullmatch("E[A-Z0-9]+", by_name["reason"])
        assert found == +sums

    def test_a_reason_is_a_known_one_or_an_errno(self) -> None:
        metrics = Metrics("1", lambda: STATE)
        given = [(policy.LIMIT, None), (destroy.TIME_LIMIT, 2), ("not permitted", 1), ("closed", None), ("?", 4000)]
        metrics.on_pass(a_pass(reported([outcome("failed", *each, 17) for each in given])))
        found = [dict(labels) for name, labels in parsed(metrics.text()) if name == "socklb_sockets_total"]
        assert {each["reason"] for each in found} == {"limit", "time limit", "EPERM", "other"}
        assert [{**each, "reason": ""} for each in found] == [
            {"outcome": "failed", "reason": "", "protocol": "udp"}
        ] * 4

    @pytest.mark.parametrize("module", [policy, destroy, of_termination])
    def test_no_reason_is_forgotten(self, module: Any) -> None:
        texts = {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}
        assert texts - REASONS <= {*Counts._fields, "all"}

    def test_passes_by_result_and_duration_and_the_namespaces_of_the_last_one(self) -> None:
        metrics, report = Metrics("1", lambda: STATE), reported([])
        report.errors[THERE] = KernelError(1, "no")
        report.add_namespace(THERE)
        report.unsearched = [UnsearchedNamespace("/x", "Permission denied", 4)]
        metrics.on_pass(a_pass(reported([]), seconds=0.25))
        metrics.on_pass(a_pass(seconds=0.26, failed=["a"]))
        metrics.on_pass(a_pass(report, seconds=999, failed=["a"], given_up=["b"]))
        series = parsed(metrics.text())
        assert of(series, "socklb_passes_total") == {"ok": 1, "failed": 1, "given_up": 1}
        assert of(series, "socklb_namespaces") == {"searched": 1, "unsearched": 5}
        buckets = of(series, "socklb_pass_duration_seconds_bucket")
        assert [buckets[bound] for bound in ("0.1", "0.25", "0.5", "300", "+Inf")] == [0, 1, 2, 2, 3]
        assert of(series, "socklb_pass_duration_seconds_sum") == {"": 999.51}
        assert of(series, "socklb_pass_duration_seconds_count") == {"": 3}

    def test_what_others_know_is_asked_at_each_scrape(self) -> None:
        states = iter([STATE._replace(last_seen=None), STATE])
        metrics = Metrics("1.2", lambda: next(states))
        assert of(parsed(metrics.text()), "socklb_source_last_seen_timestamp_seconds") == {}
        series = parsed(metrics.text())
        assert of(series, "socklb_source_last_seen_timestamp_seconds") == {"": 1.5e9}
        assert of(series, "socklb_backends") == STATE.backends
        assert of(series, "socklb_source_reconnects_total") == {"": 7}
        assert of(series, "socklb_source_bad_entries_total") == {r"a \"bad\"\\\nkind": 2}
        assert 0 <= time.time() - of(series, "process_start_time_seconds")[""] < 3600
        (build,) = (dict(labels) for name, labels in series if name == "socklb_build_info")
        assert ({*build}, build["version"]) == ({"version", "python", "kernel"}, "1.2")


def test_healthy_while_the_loop_lives_and_ready_once_the_source_talks() -> None:
    now = time.monotonic()
    assert [why_unhealthy("", began) for began in (None, now - 500)] == ["", ""]
    assert why_unhealthy("", now - 601) == "a pass goes on for more than 10 minutes"
    assert why_unhealthy("it ended", now) == "it ended"
    assert [why_unready(True, heard) for heard in (None, now - 100)] == ["", ""]
    assert "whole table" in why_unready(False, now)
    assert "more than 180 seconds" in why_unready(True, now - 181)


def test_three_paths_and_what_they_answer() -> None:
    metrics, wrong = Metrics("1", lambda: STATE), "\x1b[1m"
    answers = {path: answer() for path, answer in routes(metrics, healthz=lambda: "", readyz=lambda: wrong).items()}
    assert answers == {
        "/metrics": (200, "text/plain; version=0.0.4; charset=utf-8", metrics.text()),
        "/healthz": (200, "text/plain; charset=utf-8", "ok\n"),
        "/readyz": (503, "text/plain; charset=utf-8", "\\x1b[1m\n"),
    }
