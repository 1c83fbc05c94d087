"""`socklb watch` for those who run it: as a node agent of a cluster, its metrics, its log, a dry run."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from socklb.cli.watch_report import Log

from ..sockets import Sockets, error_of, eventually
from ..sources.kubernetes.api_server import ApiServer
from ..sources.kubernetes.conftest import api as api
from ..sources.kubernetes.endpoint_slices import endpoint, endpoint_slice
from .agent import delete, lines, replace, upsert, watch, watching
from .runner import run

pytestmark = pytest.mark.kernel

A, B = "10.9.0.2:80/TCP", "10.9.0.3:80/TCP"
CURRENT = ("--netns", "current")


def client(sockets: Sockets, address: str) -> socket.socket:
    one, _ = sockets.tcp(address, 80)
    return one


def is_cut(client: socket.socket) -> bool:
    return error_of(client.getpeername) == "ENOTCONN"


def get(path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:9469{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


class TestKubernetes:
    def test_who_is_gone_from_the_cluster_is_cut(self, sockets: Sockets, api: ApiServer, tmp_path: Path) -> None:
        """The audit names the service, /metrics what was done, /readyz that the list is whole."""
        clients = [client(sockets, f"10.9.0.{n}") for n in (2, 3)]
        api.put(endpoint_slice("web-a", endpoint("10.9.0.2"), endpoint("10.9.0.3")))
        audit = tmp_path / "audit"
        options = ("--kubeconfig", str(api.kubeconfig), "--metrics", "9469", "--audit", str(audit), *CURRENT)
        with watching(*options, source="kubernetes") as agent:
            eventually(lambda: get("/readyz") == (200, "ok\n"), "it is ready")
            api.put(endpoint_slice("web-a", endpoint("10.9.0.3")))
            eventually(lambda: is_cut(clients[0]), "the cut")
            agent.wait_for(f"{A}: 1 matched: 1 destroyed\n")
            eventually(lambda: 'outcome="destroyed",reason="",protocol="tcp"} 1\n' in get("/metrics")[1], "the count")
            metrics = get("/metrics")[1]
            assert 'socklb_backends{state="alive"} 1\n' in metrics
            assert get("/healthz") == (200, "ok\n")
            assert agent.stop()[::2] == (0, "")
        (record,) = map(json.loads, audit.read_text(encoding="utf-8").splitlines())
        assert (record["backend"], record["services"]) == (A, ["demo/web"])
        assert not is_cut(clients[1])

    def test_one_that_is_not_there_is_waited_for(self, api: ApiServer) -> None:
        api.stop()
        options = ("--kubeconfig", str(api.kubeconfig), "--metrics", "9469", *CURRENT)
        with watching(*options, source="kubernetes") as agent:
            agent.wait_for(f"socklb: {api.url} cannot be reached: Connection refused; the last table stays")
            assert get("/readyz") == (503, "the source has not given a whole table yet\n")
            assert agent.stop().code == 0

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (("kubernetes",), "this is no pod of a Kubernetes cluster"),
            (("kubernetes", "--kubeconfig", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
            (
                ("kubernetes", "--not-serving", "30"),
                "'30' is no duration: it is a number with ms, s, m or h",
            ),
            (("-", "--kube-namespace", "x"), "--kube-namespace needs --source kubernetes"),
            (("-", "--terminating", "never"), "--terminating needs --source kubernetes"),
            (("-", "--metrics", "localhost:9"), "--metrics"),
            (("-", "--json"), "--log-json"),
        ],
        ids=str,
    )
    def test_bad_input(self, network: None, words: tuple[str, ...], text: str) -> None:
        result = run("watch", "--source", *words, stdin="")
        assert (result.code, result.out, text in result.err) == (2, "", True), result.err


@pytest.mark.parametrize(("source", "hint"), [("K8S", True), ("kubernets", True), ("/run/kube", False)])
def test_a_file_that_is_missing_may_have_been_meant_for_the_cluster(network: None, source: str, hint: bool) -> None:
    with watching(source=source) as agent:
        agent.wait_for(f"socklb: {source} cannot be read: No such file or directory; ")
        assert ("; a cluster is --source kubernetes; " in agent.err) == hint


def test_what_went_down_while_it_was_not_running_is_cut_at_its_next_start(sockets: Sockets, tmp_path: Path) -> None:
    """With --remember; killed as it was, and with a dry run in between, which changes nothing of what is remembered."""
    clients = [client(sockets, f"10.9.0.{n}") for n in (2, 3)]
    followed, memory = tmp_path / "backends.json", tmp_path / "memory"
    followed.write_text(json.dumps(replace(A, B)), encoding="utf-8")
    options = ("--remember", str(memory), *CURRENT)
    with watching(*options, source=str(followed)):
        eventually(lambda: memory.exists() and f"{B}\n" in memory.read_text(), "it is remembered")
    followed.write_text(json.dumps(replace(B)), encoding="utf-8")
    with watching(*options, "--dry-run", source=str(followed)) as agent:
        agent.wait_for(f"{A}: 1 matched: 1 would be destroyed\n")
        assert agent.stop().code == 0
    with watching(*options, source=str(followed)) as agent:
        eventually(lambda: is_cut(clients[0]), "the cut")
        eventually(lambda: f"{A}\n" not in memory.read_text(), "it is done with")
        assert agent.stop()[::2] == (0, "")
    assert not is_cut(clients[1])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("-", "--remember", "/run/x"), "--remember needs --remember-as NAME with --source -"),
        (("/x", "--remember", "/run/x", "--remember-as", "y"), "--remember-as needs --source -"),
        (("/x", "--remember-for", "1m"), "need --remember FILE"),
        (("/x", "--remember", "/run/x", "--remember-for", "1"), "'1' is no duration"),
        (("/x", "--remember", "/dev/null"), "/dev/null is not a regular file"),
        (("/x", "--remember", "/nowhere/y"), "nothing can be remembered in /nowhere/y: No such file or directory"),
        (("/run/x", "--remember", "/run/./x"), "--remember /run/./x is what --source follows"),
    ],
    ids=str,
)
def test_bad_input_of_remember(network: None, words: tuple[str, ...], text: str) -> None:
    result = run("watch", "--source", *words, stdin="")
    assert (result.code, result.out, text in result.err) == (2, "", True), result.err


def test_a_dry_run_destroys_nothing_and_looks_once(sockets: Sockets) -> None:
    one = client(sockets, "10.9.0.2")
    with watching("--dry-run", *CURRENT) as agent:
        agent.send(upsert(A), delete(A))
        agent.wait_for(f"{A}: 1 matched: 1 would be destroyed\n")
        assert agent.end() == (0, f"{A}: 1 matched: 1 would be destroyed\n", "")
    assert not is_cut(one)


def test_the_log_as_json(sockets: Sockets) -> None:
    """An object a line, with its time: what is followed, what is wrong, what was done."""
    client(sockets, "10.9.0.2")
    changes = lines(upsert(A), "bad", delete(A))
    result = run("watch", "--source", "-", "--log-json", *CURRENT, stdin=changes)
    (cut,) = map(json.loads, result.out.splitlines())
    said: list[dict[str, Any]] = [json.loads(line) for line in result.err.splitlines()]
    assert (cut["backends"], cut["matched"], cut["destroyed"]) == ([A], 1, 1)
    assert 0 < cut["seconds"] < 1000
    assert [one["level"] for one in said] == ["info", "warning"]
    assert said[0]["message"].startswith("follows standard input in network namespaces current; not asked for: ")
    assert {one["time"][:2] + one["time"][-1] for one in (cut, *said)} == {"20Z"}


def test_of_what_is_to_be_shown_one_at_most_waits(tmp_path: Path) -> None:
    """A storm of SIGUSR1 must not fill a queue with tables."""
    begun, go_on, shown = threading.Event(), threading.Event(), list[int]()

    def show(number: int) -> str:
        begun.set()
        assert go_on.wait(20)
        shown.append(number)
        return ""

    with open(tmp_path / "log", "w", encoding="utf-8") as stream:
        log = Log(stream, shown.append, as_json=False)
        log.show(lambda: show(1))
        assert begun.wait(20)
        for number in (2, 3, 4):
            log.show(lambda number=number: show(number))  # type: ignore[misc]
        go_on.set()
        log.close()
    assert shown == [1, 2]


def test_many_that_go_down_at_once_are_a_line(network: None) -> None:
    backends = [f"10.9.0.{n}:80/TCP" for n in range(1, 8)]
    changes = (op(one) for op in (upsert, delete) for one in backends)
    result = watch(*CURRENT, stdin=lines(*changes))
    assert result.out == f"{', '.join(backends[:3])} and 4 more: 0 matched: 0 destroyed\n"
