"""The source against an API server: what it makes of each answer, and of none."""

from __future__ import annotations

import json
import threading
from collections import Counter
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socklb import Backend
from socklb.sources.kubernetes import Access, KubernetesSource, client, from_kubeconfig, source

from ...sockets import eventually
from ..followed import Followed, followed, taken_down
from .answers import (
    CLOSE,
    EXPIRED_PAGE,
    FLOOD,
    FLOOD_SIZE,
    FORBIDDEN,
    RESET,
    SILENCE,
    TRICKLE,
    UNAUTHORIZED,
    WHOLE,
    Answer,
    chunk,
    head,
    status,
)
from .api_server import ApiServer
from .endpoint_slices import Object, encode, endpoint, endpoint_slice
from .kubeconfigs import data_of, kubeconfig, written

pytestmark = pytest.mark.kernel

A, B, C = (Backend(f"10.1.0.{n}", 80, "tcp") for n in (1, 2, 3))


def web(*backends: Backend, name: str = "web-a", **conditions: bool) -> Object:
    return endpoint_slice(name, *(endpoint(str(one.address), **conditions) for one in backends))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that are not waited for."""
    monkeypatch.setattr(source, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(source, "LONGEST_PAUSE", 0.05)


def following(api: ApiServer, **options: Any) -> Any:
    return followed(KubernetesSource(from_kubeconfig(api.kubeconfig), **options))


def until(f: Followed, *alive: Backend) -> None:
    f.until(lambda f: f.alive(A, B, C) == [one in alive for one in (A, B, C)], f"these alone are alive: {alive}")


def until_watching(api: ApiServer, f: Followed) -> None:
    f.until(lambda f: api.watches == 1 and f.table.is_whole, "it watches")


def until_warned(f: Followed, text: str) -> None:
    f.until(lambda f: any(text in warning for warning in f.warnings), f"a warning: {text}")


class TestWatch:
    def test_what_is_listed_and_what_changes(self, api: ApiServer) -> None:
        api.put(web(A))
        with following(api) as f:
            until_watching(api, f)
            assert (f.alive(A, B), f.source.last_version) == ([True, False], str(api.version))
            api.put(web(A, B))
            until(f, A, B)
            api.put(web(C, name="web-b"))
            api.put(web(B))
            until(f, B, C)
            api.delete("demo", "web-b")
            until(f, B)
            assert taken_down(f.table) == {A: ["demo/web"], C: ["demo/web"]}
            version = api.version = api.version + 5
            api.bookmark()
            f.until(lambda f: f.source.last_version == str(version), "the bookmark")
        assert (f.warnings, f.source.status.reconnects, len(api.requests)) == ([], 0, 2)

    def test_what_it_asks_for(self, api: ApiServer) -> None:
        api.put(web(A))
        api.put(endpoint_slice("other", endpoint("10.1.0.2"), namespace="other"))
        api.put(endpoint_slice("headless", endpoint("10.1.0.3"), metadata={"labels": {"x": ""}}))
        with following(api, namespace="demo", selector="!x") as f:
            until(f, A)
            until_watching(api, f)
        listing, watching = api.requests
        assert {request.path for request in api.requests} == {
            "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices"
        }
        assert listing.query == {"limit": "100", "labelSelector": "!x"}
        assert watching.query == {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": str(api.version),
            "labelSelector": "!x",
        }

    @pytest.mark.parametrize("chunked", [False, True])
    def test_pages(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch, chunked: bool) -> None:
        """Nothing is in the table before the last one is there; a page that has expired is a list anew."""
        monkeypatch.setattr(client, "_PAGE", 1)
        api.chunked_lists = chunked
        for backend in (A, B, C):
            api.put(web(backend, name=f"web-{backend.address}"))
        api.answer_next(None, EXPIRED_PAGE, None, None, Answer(ending=SILENCE))
        with following(api) as f:
            f.until(lambda f: len(api.requests) == 5, "the last page of the second list")
            assert (f.alive(A, B, C), f.table.is_whole) == ([False] * 3, False)
            api.stop()
            api.start()
            until(f, A, B, C)

    def test_it_goes_on_from_the_last_version_however_it_is_cut(self, api: ApiServer) -> None:
        """A line that was cut is none, and comes again."""
        api.put(web(A))
        with following(api) as f:
            until_watching(api, f)
            version = api.put(web(A, B))
            until(f, A, B)
            line = encode(
                {
                    "type": "DELETED",
                    "object": {**web(A, B), "metadata": {**web(A)["metadata"], "resourceVersion": "999999"}},
                }
            )
            for ending in (WHOLE, CLOSE, RESET):
                for data, missing in ((b"", 0), (line[:-1], 0), (line[:-1], 1), (line[:20], len(line) - 20)):
                    if ending != WHOLE or not missing:
                        requests = len(api.requests)
                        api.end_watches(ending, data, missing)
                        eventually(lambda n=requests: len(api.requests) > n and api.watches == 1, "the next watch")  # type: ignore[misc]
            api.put(web(A))
            until(f, A)
        assert f.table.drain_down() == [B]
        assert {request.query["resourceVersion"] for request in api.requests[2:]} == {str(version)}


class TestServers:
    """That it is gone takes nothing down; what fell meanwhile is found, and cut once."""

    def test_one_that_is_restarted_knows_no_version_from_before(self, api: ApiServer) -> None:
        api.put(web(A, B))
        with following(api) as f:
            until_watching(api, f)
            api.stop()
            api.put(web(A))
            api.put(web(A, C))
            api.restart()
            until(f, A, C)
            until_watching(api, f)
        assert f.table.drain_down() == [B]
        assert not any("410" in warning for warning in f.warnings)

    def test_one_that_is_away(self, api: ApiServer) -> None:
        api.put(web(A))
        with following(api) as f:
            until_watching(api, f)
            api.stop()
            until_warned(f, "cannot be reached: Connection refused; the last table stays, and it is tried again")
            assert f.alive(A) == [True]
            api.start()
            until_watching(api, f)
            api.bookmark()
            until_warned(f, f"{api.url} answers again")
        assert (f.table.drain_down(), f.alive(A)) == ([], [True])

    def test_one_that_is_stopped_says_nothing_and_that_is_noticed(
        self, api: ApiServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(client, "SILENCE_SECONDS", 0.3)
        monkeypatch.setattr(client, "CONNECT_SECONDS", 0.3)
        api.put(web(A))
        with following(api) as f:
            until_watching(api, f)
            api.silence()
            until_warned(f, f"{api.url} does not answer; the last table stays")
            api.put(web(B))
            api.silence(False)
            until(f, B)

    def test_an_etcd_from_a_backup(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A watch from a version of the future is silent. What its list lacks goes down if a second one lacks it too;
        what it has more is there.
        """
        monkeypatch.setattr(client, "SILENCE_SECONDS", 0.3)
        old = api.put(web(A))
        api.put(web(B, name="web-b"))
        api.put(web(A, C))
        api.delete("demo", "web-a")
        with following(api) as f:
            until(f, B)
            seen = api.version
            monkeypatch.setattr(source, "CONFIRMED_SECONDS", 3600.0)
            api.restore(old)
            until(f, A, B)
            assert [warning for warning in f.warnings if f"version {old}, older than {seen}" in warning]
            f.source._confirmed = 0.0
            api.end_watches(RESET)
            api.compact()
            api.version += 1
            f.until(lambda f: f.alive(A, B) == [True, False], "the second list")
        assert (f.table.drain_down(), f.source.last_version) == ([B], str(api.version))

    def test_a_wrong_one(self, api: ApiServer) -> None:
        ca = data_of("other-ca.pem")
        path = written(api.kubeconfig.parent, kubeconfig(api.url, {"token": "x"}, **{"certificate-authority-data": ca}))
        with followed(KubernetesSource(from_kubeconfig(path))) as f:
            until_warned(f, f"the certificate of {api.url} is refused: ")
        assert api.requests == []


def a_list(**members: Any) -> Answer:
    usual = {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": []}
    return Answer(200, json.dumps({**usual, **members}).encode())


CHUNKED = head(200, {"Transfer-Encoding": "chunked"})

REFUSALS = {
    "401": (UNAUTHORIZED, "answers 401 Unauthorized; it does not take the token of "),
    "403": (FORBIDDEN, "cannot list resource; it needs a role that may list and watch endpointslices"),
    "429": (status(429, "TooManyRequests", "slow down", retry_after=1), "answers 429 slow down"),
    "500": (status(500, "", "etcd is ill"), "answers 500 etcd is ill"),
    "503": (Answer(503, b"<html>a proxy"), "answers 503 Service Unavailable"),
    "302": (Answer(302, b"", {"Location": "https://elsewhere"}), "answers 302 Found"),
    "no JSON": (Answer(200, b"<html>"), "not JSON: Expecting value"),
    "deep": (Answer(200, b"[" * 100_000), "not JSON: "),
    "no list": (Answer(200, b"{}"), "the answer is no list"),
    "no items": (a_list(items=False), "the answer is no list"),
    "another kind": (a_list(kind="ConfigMapList"), "the answer is no list"),
    "a page that is no text": (a_list(metadata={"resourceVersion": "1", "continue": 5}), "the answer is no list"),
    "a version that is no text": (a_list(metadata={"resourceVersion": "\ud800"}), "the answer is no list"),
    "a slice twice": (a_list(items=[web(B), web(B)]), "a list has a slice twice"),
    "cut": (Answer(200, b"{", ending=CLOSE, missing=5), "no whole answer of HTTP/1.1: IncompleteRead"),
    "nothing": (Answer(0, ending=CLOSE), "no whole answer of HTTP/1.1: RemoteDisconnected"),
    **{
        f"a chunk of the size {size}": (
            Answer(0, CHUNKED + size.encode() + b"\r\n", ending=CLOSE),
            "no whole answer of HTTP/1.1",
        )
        for size in ("zz", "-5", "f" * 15, "f" * 20)
    },
}


@pytest.mark.parametrize(("answer", "text"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_no_list_is_said_once_and_tried_again(api: ApiServer, answer: Answer, text: str) -> None:
    api.put(web(A))
    api.answer_next(answer, answer)
    with following(api) as f:
        until(f, A)
        until_warned(f, "answers again")
    assert [text in warning for warning in f.warnings] == [True, False]
    assert f.warnings[0].endswith("; the last table stays, and it is tried again")


EVENTS = {
    "an error": b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"ill"}}',
    "no type": b'{"object":{}}',
    "an unknown type": encode({"type": "MOVED", "object": web(A)}),
    "no version": encode({"type": "ADDED", "object": web(A)}),
    "no name": b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"999"}}}',
    "no JSON": b"\xff\xfe",
    "an array": b"[]",
}


@pytest.mark.parametrize("line", EVENTS.values(), ids=EVENTS)
def test_what_is_no_event_is_said_and_the_table_stays(api: ApiServer, line: bytes) -> None:
    api.put(web(A))
    with following(api) as f:
        until_watching(api, f)
        api.send(line.rstrip() + b"\n")
        until_warned(f, "; the last table stays, and it is tried again")
        assert f.alive(A) == [True]
        api.put(web(B))
        until(f, B)


MANY = b" " * (1 << 16)
WITHOUT_END = {
    "a body": Answer(0, CHUNKED, ending=FLOOD, again=chunk(MANY, 0)),
    "a chunk of a negative size": Answer(0, CHUNKED + b"-1\r\n", ending=FLOOD, again=MANY),
    "trailers": Answer(0, CHUNKED + b"2\r\n{}\r\n0\r\n", ending=FLOOD, again=b"X: y\r\n" * 1000),
    "answers that come before one": Answer(0, ending=FLOOD, again=head(100, {}) * 1000),
}


class TestWithoutEnd:
    """A list, and an event, of any size and duration."""

    @pytest.mark.parametrize("answer", WITHOUT_END.values(), ids=WITHOUT_END)
    @pytest.mark.parametrize("before", [(), (None,)], ids=["list", "watch"])
    def test_in_bytes(
        self, api: ApiServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, before: tuple[None, ...]
    ) -> None:
        """What the server got rid of is little more than the limit: what the kernel holds."""
        monkeypatch.setattr(client, "_LARGEST_EVENT" if before else "LARGEST", 1 << 20)
        api.answer_next(*before, answer)
        with following(api) as f:
            until_warned(f, "; the last table stays")
        assert 0 < api.flooded < FLOOD_SIZE

    @pytest.mark.parametrize(
        "answer",
        [
            a_list(metadata={"resourceVersion": "1", "continue": "more"}),
            Answer(200, ending=TRICKLE, again=chunk(b" ", 0)),
        ],
        ids=["pages", "bytes"],
    )
    def test_a_list_in_time(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
        monkeypatch.setattr(client, "LIST_SECONDS", 0.1)
        api.always = lambda request: answer
        with following(api) as f:
            until_warned(f, "a list has no end within 0 s; the last table stays")
        assert not f.source.status.has_table

    @pytest.mark.parametrize(
        ("is_watch", "answer"),
        [(False, Answer(0, ending=SILENCE)), (True, Answer(200, ending=TRICKLE, again=chunk(b" ", 0)))],
    )
    def test_what_is_taken_for_silence(
        self, api: ApiServer, monkeypatch: pytest.MonkeyPatch, is_watch: bool, answer: Answer
    ) -> None:
        monkeypatch.setattr(client, "SILENCE_SECONDS", 0.3)
        api.always = lambda request: answer if request.is_watch == is_watch else None
        with following(api) as f:
            until_warned(f, f"{api.url} does not answer; the last table stays")

    def test_a_watch_may_be_of_any_size(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(client, "_LARGEST_EVENT", 1 << 16)
        with following(api) as f:
            until_watching(api, f)
            for _ in range(9):
                api.put({**web(A), "unknown": "x" * (1 << 14)})
            api.put(web(B))
            until(f, B)
        assert len(api.requests) == 2


ILL = {
    "an error each time": Answer(200, EVENTS["an error"] + b"\n"),
    "cut each time": Answer(200, ending=CLOSE, missing=1),
}


@pytest.mark.parametrize("answer", ILL.values(), ids=ILL)
def test_a_watch_that_opens_and_brings_nothing_answers_again_when_it_does(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    """Though lists are whole in between."""
    api.always = lambda request: answer if request.is_watch else None
    with following(api) as f:
        f.until(lambda f: f.source._failures > 5, "several attempts, with growing pauses")
        assert len(f.warnings) == 1
        api.always = lambda request: None
        until_watching(api, f)
        api.bookmark()
        until_warned(f, "answers again")
        assert f.source._failures == 0


def test_a_watch_that_opens_is_no_word_from_the_server(api: ApiServer) -> None:
    with following(api) as f:
        until_watching(api, f)
        heard = f.source.status.last_heard
        api.end_watches()
        f.until(lambda f: len(api.requests) == 3 and api.watches == 1, "the next watch")
        assert f.source.status.last_heard == heard
        api.bookmark()
        f.until(lambda f: f.source.status.last_heard > heard, "the bookmark")


def test_a_slice_that_is_none_changes_nothing_of_what_is_known_of_it(api: ApiServer) -> None:
    with following(api) as f:
        api.put(web(A))
        until(f, A)
        api.put({**web(A), "ports": 5})
        api.put(web(B, name="web-b"))
        until(f, A, B)
        api.restart()
        api.put(web(C, name="web-c"))
        until(f, A, B, C)
    said = [warning for warning in f.warnings if "demo/web-a: TypeError" in warning]
    assert (f.source.status.bad_entries["malformed"], len(said)) == (2, 1)


def test_a_list_with_a_slice_that_is_not_known_and_none_takes_nothing_down(api: ApiServer) -> None:
    """Not even what an earlier process had alive: it may be in there."""
    api.put({**web(A), "ports": 5})
    api.put(web(B, name="web-b"))
    made = KubernetesSource(from_kubeconfig(api.kubeconfig))
    with followed(made, recalled=[A, B, C]) as f:
        f.until(lambda f: api.watches == 1, "it watches")
        assert (f.alive(A, B, C), f.table.is_whole) == ([True] * 3, False)


def test_a_slice_that_is_none_makes_no_other_list_less_whole(api: ApiServer) -> None:
    """What was deleted while the server was away is gone, whatever else is in its list."""
    api.put({**web(C, name="web-c"), "ports": 5})
    api.put(web(A))
    with following(api) as f:
        until_watching(api, f)
        api.stop()
        api.delete("demo", "web-a")
        api.restart()
        until(f)
    assert f.table.drain_down() == [A]


def test_a_server_that_closes_after_each_answer(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy may: pages come over several connections."""
    monkeypatch.setattr(client, "_PAGE", 1)
    for backend in (A, B):
        api.put(web(backend, name=f"web-{backend.address}"))
    api.always = lambda request: (
        None if request.is_watch else api._list(request)._replace(headers={"Connection": "close"})
    )
    with following(api) as f:
        until(f, A, B)


class TestTime:
    def test_who_does_not_serve_goes_down_when_its_time_has_come(self, api: ApiServer) -> None:
        """At the next word of the server, though nothing has changed; the last one is held, and counted."""
        api.put(web(A, B))
        with following(api, not_serving=0.1) as f:
            until_watching(api, f)
            api.put(endpoint_slice("web-a", endpoint("10.1.0.1", serving=False), endpoint("10.1.0.2")))
            f.until(lambda f: api.bookmark() or f.alive(A, B) == [False, True], "the one goes down")  # type: ignore[func-returns-value]
            api.put(web(A, B, serving=False))
            f.until(lambda f: api.bookmark() or f.source.status.held == 1, "the other one is held")  # type: ignore[func-returns-value]
        assert f.table.drain_down() == [A]

    def test_not_while_nobody_is_there_to_say_that_it_serves_again(self, api: ApiServer) -> None:
        api.put(web(A, B))
        with following(api, not_serving=0.2) as f:
            until_watching(api, f)
            api.put(endpoint_slice("web-a", endpoint("10.1.0.1", serving=False), endpoint("10.1.0.2")))
            f.until(lambda f: f.source.last_version == str(api.version), "its time runs")
            began = monotonic()
            api.stop()
            until_warned(f, "Connection refused")
            eventually(lambda: monotonic() > began + 0.4, "its time has come")
            assert f.alive(A) == [True]
            api.put(web(A, B))
            api.put(web(C, name="web-b"))
            api.start()
            until(f, A, B, C)
            until_watching(api, f)
        assert f.table.drain_down() == []


class TestStop:
    @pytest.mark.parametrize("ending", ["", SILENCE])
    def test_whatever_it_waits_for(self, api: ApiServer, ending: str) -> None:
        """A watch; the answer to a request. It hangs up, and leaves no thread."""
        threads = threading.active_count()
        if ending:
            api.answer_next(Answer(0, ending=SILENCE))
        with following(api) as f:
            f.until(lambda f: len(api.requests) == (1 if ending else 2), "the request")
        eventually(lambda: threading.active_count() <= threads, "no thread is left")

    def test_the_rest_of_an_answer_after_which_the_server_closes(self, api: ApiServer) -> None:
        """Its connection has no socket any more."""
        api.answer_next(Answer(200, b"", {"Connection": "close"}, SILENCE))
        with following(api) as f:
            f.until(lambda f: getattr(f.source._client._connection, "sock", 0) is None, "the head of the answer")

    def test_a_connection_that_is_being_made(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
        made, connect = KubernetesSource(from_kubeconfig(api.kubeconfig)), Access.connect

        def stop_and_connect(access: Access, timeout: float) -> Any:
            made.stop()
            return connect(access, timeout)

        monkeypatch.setattr(Access, "connect", stop_and_connect)
        with followed(made) as f:
            f.wait()
        assert api.requests == []

    def test_a_pause(self, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "FIRST_PAUSE", 3600.0)
        monkeypatch.setattr(source, "LONGEST_PAUSE", 3600.0)
        api.stop()
        with following(api) as f:
            until_warned(f, "Connection refused")


names = st.sampled_from("ab")
some = st.lists(st.sampled_from((A, B, C)), max_size=3, unique=True)
steps = st.one_of(
    st.tuples(names, some).map(lambda drawn: ("put", drawn)),
    st.tuples(names, some).map(lambda drawn: ("put", drawn)),
    names.map(lambda name: ("delete", name)),
    st.sampled_from((WHOLE, CLOSE, RESET)).map(lambda ending: ("end_watches", ending)),
    st.sampled_from(("restart", "stop", "start", "compact", "bookmark", "refuse", "wait")).map(
        lambda name: (name, None)
    ),
)


@settings(max_examples=max(10, settings().max_examples // 2), suppress_health_check=list(HealthCheck))
@given(st.lists(steps, min_size=3, max_size=15))
def test_whatever_happens_the_table_is_what_the_newest_list_would_give(
    network: None, tmp_path_factory: Any, several: list[tuple[str, Any]]
) -> None:
    """And what went down is told: once, if it is down, and never more often than it went down."""
    api = ApiServer()
    api.start()
    api.kubeconfig = written(tmp_path_factory.mktemp("kube"), kubeconfig(api.url))
    falls, told = Counter[Backend](), Counter[Backend]()
    seen: set[Backend] = set()
    try:
        with following(api) as f:
            for name, argument in several:
                before = alive_at(api)
                if name == "put":
                    api.put(web(*argument[1], name=argument[0]))
                elif name == "delete" and ("demo", argument) in api.slices:
                    api.delete("demo", argument)
                elif name == "refuse":
                    api.answer_next(status(503, "", "not now"))
                elif name == "wait" and not api._is_stopping:
                    until(f, *before)
                    seen |= before
                elif name == "end_watches":
                    api.end_watches(argument)
                elif name in ("restart", "stop", "compact", "bookmark") or (name == "start" and api._is_stopping):
                    getattr(api, name)()
                falls.update(before - alive_at(api))
                told.update(f.table.drain_down())
            if api._is_stopping:
                api.start()
            until(f, *alive_at(api))
            told.update(f.table.drain_down())
    finally:
        api.stop()
    assert not told - falls
    assert seen - alive_at(api) <= {*told}


def alive_at(api: ApiServer) -> set[Backend]:
    return {
        one for one in (A, B, C) if any(str(one.address) in str(slice_["endpoints"]) for slice_ in api.slices.values())
    }


def test_versions_are_compared_as_numbers_however_long_they_are() -> None:
    """CPython refuses to convert more than 4,300 digits."""
    long = "9" * 10_000
    assert source._is_older("9", "10")
    assert source._is_older(long, f"1{long}")
    assert not any(source._is_older(*pair) for pair in (("10", "9"), ("9", "9"), ("", "9"), ("9", ""), ("x", "9")))
