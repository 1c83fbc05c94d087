"""The API server of the tests answers as the real one did, and fails when it is told to."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ...sockets import eventually
from .answers import CLOSE, FORBIDDEN, RESET, SILENCE, Answer, status
from .api_server import PKI, TOKEN, ApiServer
from .endpoint_slices import API, endpoint, endpoint_slice

pytestmark = pytest.mark.kernel

ALL = f"{API}/endpointslices"


@contextmanager
def connected(api: ApiServer, timeout: float = 30) -> Iterator[http.client.HTTPSConnection]:
    context = ssl.create_default_context(cafile=PKI / "ca.pem")
    context.verify_flags = ssl.VerifyFlags(0x80000)
    connection = http.client.HTTPSConnection(api.host, api.port, timeout=timeout, context=context)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPSConnection, query: str = "", path: str = ALL) -> http.client.HTTPResponse:
    connection.request("GET", f"{path}?{query}", headers={"Authorization": f"Bearer {TOKEN}"})
    return connection.getresponse()


def listed(api: ApiServer, query: str = "", path: str = ALL) -> Any:
    with connected(api) as connection, ask(connection, query, path) as response:
        return json.loads(response.read())


@contextmanager
def watching(api: ApiServer, query: str = "", since: int | None = None) -> Iterator[http.client.HTTPResponse]:
    since = api.version if since is None else since
    with connected(api) as connection, ask(connection, f"watch=1&resourceVersion={since}&{query}") as response:
        assert (response.status, response.getheader("Transfer-Encoding")) == (200, "chunked")
        yield response


def told(response: http.client.HTTPResponse) -> tuple[str, str, int]:
    """Kind, name and version of an event."""
    line = json.loads(response.readline())
    metadata = line["object"]["metadata"]
    return line["type"], metadata.get("name", ""), int(metadata.get("resourceVersion", line["object"].get("code")))


A, B = endpoint_slice("a", endpoint("10.1.0.1")), endpoint_slice("b", endpoint("10.1.0.2"), namespace="other")
HEADLESS = {"labels": {"service.kubernetes.io/headless": ""}}


class TestObjects:
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_list_is_of_the_namespace_and_the_labels_asked_for(self, api: ApiServer, chunked: bool) -> None:
        api.chunked_lists = chunked
        api.put(A)
        api.put(B)
        api.put(endpoint_slice("c", metadata=HEADLESS))

        def names(query: str = "", path: str = ALL) -> list[str]:
            return [one["metadata"]["name"] for one in listed(api, query, path)["items"]]

        assert names() == ["a", "c", "b"]
        assert names("labelSelector=%21service.kubernetes.io%2Fheadless") == ["a", "b"]
        assert names("labelSelector=kubernetes.io/service-name%3Dweb", f"{API}/namespaces/other/endpointslices") == [
            "b"
        ]
        assert listed(api)["metadata"] == {"resourceVersion": "103"}

    def test_pages_are_of_one_version(self, api: ApiServer) -> None:
        api.put(A)
        api.put(B)
        first = listed(api, "limit=1")
        api.delete("other", "b")
        second = listed(api, f"limit=1&continue={first['metadata']['continue']}")
        assert first["metadata"]["remainingItemCount"] == 1
        assert [one["metadata"]["name"] for one in first["items"] + second["items"]] == ["a", "b"]
        assert second["metadata"] == {"resourceVersion": "102"}
        api.compact()
        assert listed(api, f"limit=1&continue={first['metadata']['continue']}")["code"] == 410

    def test_a_watch_tells_what_came_since_and_what_comes(self, api: ApiServer) -> None:
        api.put(A)
        with watching(api, "allowWatchBookmarks=true", since=100) as response:
            api.put(A)
            api.delete("demo", "a")
            api.bookmark()
            assert [told(response) for _ in range(4)] == [
                ("ADDED", "a", 101),
                ("MODIFIED", "a", 102),
                ("DELETED", "a", 103),
                ("BOOKMARK", "", 103),
            ]
            api.end_watches()
            assert response.read() == b""
        eventually(lambda: api.watches == 0, "the watch has ended")

    def test_what_leaves_the_selection_is_deleted_as_it_was(self, api: ApiServer) -> None:
        with watching(api, "labelSelector=%21service.kubernetes.io%2Fheadless") as response:
            api.put(A)
            api.put(endpoint_slice("a", metadata=HEADLESS))
            api.put(A)
            assert told(response) == ("ADDED", "a", 101)
            gone = json.loads(response.readline())
            assert (gone["type"], gone["object"]["metadata"]["labels"]) == ("DELETED", A["metadata"]["labels"])
            assert told(response) == ("ADDED", "a", 103)

    def test_after_a_restart_versions_from_before_are_too_old(self, api: ApiServer) -> None:
        version = api.put(A)
        with watching(api) as response:
            api.restart()
            assert response.readline() == b""
        with watching(api, since=version) as response:
            assert (told(response), response.read()) == (("ERROR", "", 410), b"")
        assert listed(api)["metadata"]["resourceVersion"] == str(version + 8)

    def test_after_a_restore_nothing_is_told_of_the_future(self, api: ApiServer) -> None:
        version = api.put(A)
        api.put(B)
        api.delete("demo", "a")
        api.restore(version)
        assert [one["metadata"]["name"] for one in listed(api)["items"]] == ["a"]
        with watching(api, since=version + 2) as response:
            api.put(B)
            api.end_watches()
            assert response.read() == b""


class TestFaults:
    def test_each_answer_is_for_one_request_and_then_it_is_usual_again(self, api: ApiServer) -> None:
        api.answer_next(FORBIDDEN, None, status(429, "TooManyRequests", "slow", retry_after=7))
        with connected(api) as connection:
            for code in (403, 200, 429, 200):
                with ask(connection) as response:
                    response.read()
                    assert (response.status, response.getheader("Retry-After")) == (code, "7" if code == 429 else None)
        assert api.requests[0].headers["authorization"] == f"Bearer {TOKEN}"

    def test_only_whom_it_knows(self, api: ApiServer) -> None:
        api.token = "another"
        assert listed(api)["code"] == 401

    @pytest.mark.parametrize(("ending", "error"), [(CLOSE, http.client.IncompleteRead), (RESET, ConnectionResetError)])
    def test_an_answer_that_is_cut(self, api: ApiServer, ending: str, error: type[Exception]) -> None:
        api.answer_next(Answer(200, b"{", ending=ending, missing=5))
        with pytest.raises((error, http.client.IncompleteRead)):
            listed(api)

    @pytest.mark.parametrize("silenced", [ApiServer.silence, lambda api: api.answer_next(Answer(0, ending=SILENCE))])
    def test_no_answer_at_all(self, api: ApiServer, silenced: Callable[[ApiServer], None]) -> None:
        silenced(api)
        with connected(api, timeout=0.1) as connection, pytest.raises(OSError, match="timed out"):
            ask(connection)

    def test_a_watch_is_told_anything_and_cut_anywhere(self, api: ApiServer) -> None:
        with watching(api) as response:
            api.send(b"\xff\n")
            api.send(b'{"type"')
            api.end_watches(CLOSE, b": ", missing=1)
            assert response.readline() == b"\xff\n"
            with pytest.raises(http.client.IncompleteRead):
                response.read()

    def test_it_stops_and_starts_on_the_same_port(self, api: ApiServer) -> None:
        api.stop()
        with connected(api) as connection, pytest.raises(ConnectionRefusedError):
            ask(connection)
        api.start()
        assert listed(api)["items"] == []
