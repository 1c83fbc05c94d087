"""Which endpoints are alive: the rules, one by one, and against a model that knows no table and no difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socklb import Backend
from socklb.sources.kubernetes.endpoint_slice import KINDS, EndpointSlice, key_of
from socklb.sources.kubernetes.endpoints import Endpoints
from socklb.sources.status import SourceStatus
from socklb.termination.table import PackedTable

from ..followed import taken_down
from .endpoint_slices import Object, endpoint, endpoint_slice

Place = tuple[str, str, bool]  # a slice, its service, and whether one serves there

A, B = (Backend(f"10.1.0.{n}", 80, "tcp") for n in (1, 2))
SERVES, NOT, ENDING = {"serving": True}, {"serving": False}, {"serving": True, "terminating": True}


class Cluster:
    """Slices as they are put and removed, and what became of their endpoints."""

    def __init__(self, not_serving: float | None = 30, terminating: float | None = None) -> None:
        self.table, self.warnings, self.now = PackedTable(), list[str](), 0.0
        self.left_out = list[str]()
        self.status = SourceStatus(KINDS)
        after = {"not_serving": not_serving, "terminating": terminating}
        self.endpoints = Endpoints(self.table, self.warnings.append, self.status, **after)

    def read(self, slice_: Object) -> EndpointSlice:
        return EndpointSlice.read(slice_, lambda kind, what: self.left_out.append(kind))

    def put(self, *slices: Object) -> None:
        for slice_ in slices:
            self.endpoints.put(key_of(slice_), self.read(slice_), self.now)

    def remove(self, name: str) -> None:
        self.endpoints.remove(("demo", name), self.now)

    def relist(self, *slices: Object) -> None:
        self.endpoints.replace({key_of(slice_): self.read(slice_) for slice_ in slices}, self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.endpoints.settle(self.now)

    def down(self) -> list[Backend]:
        return self.table.drain_down()


def web(name: str = "web-a", service: str = "web", **conditions: dict[str, bool]) -> Object:
    """A slice whose endpoints are a, b, ... (10.1.0.1, 10.1.0.2, ...) in these conditions."""
    several = [endpoint(f"10.1.0.{ord(letter) - ord('a') + 1}", **one) for letter, one in conditions.items()]
    return endpoint_slice(name, *several, service=service)


class TestReadiness:
    @pytest.mark.parametrize(
        ("conditions", "is_alive"),
        [
            ({"ready": True, "serving": True, "terminating": False}, True),
            ({"ready": False, "serving": True, "terminating": True}, True),  # drains
            ({"ready": True}, True),  # serving is unset: what ready says
            ({"ready": False}, False),
            ({}, True),
            ({"ready": True, "serving": False}, False),  # publishNotReadyAddresses
        ],
        ids=str,
    )
    def test_alive_is_what_serves(self, conditions: dict[str, bool], is_alive: bool) -> None:
        cluster = Cluster()
        slice_ = web(a=SERVES, b=SERVES)
        slice_["endpoints"][0]["conditions"] = conditions
        cluster.relist(web(a=SERVES, b=SERVES), slice_) if is_alive else cluster.put(web(a=SERVES, b=SERVES), slice_)
        cluster.wait(30)
        assert (cluster.table.is_alive(A), cluster.down()) == (is_alive, [] if is_alive else [A])

    def test_who_does_not_serve_goes_down_after_a_while_and_not_if_it_serves_again(self) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES, b=SERVES), web(a=NOT, b=SERVES))
        cluster.wait(29)
        cluster.put(web(a=SERVES, b=SERVES), web(a=NOT, b=SERVES))
        cluster.wait(29)
        assert (cluster.down(), cluster.endpoints.next_time()) == ([], 59)
        cluster.wait(1)
        assert (taken_down(cluster.table), cluster.endpoints.next_time()) == ({A: ["demo/web"]}, None)
        cluster.put(web(a=SERVES, b=SERVES))
        assert (cluster.table.is_alive(A), cluster.down()) == (True, [])

    def test_never(self) -> None:
        cluster = Cluster(not_serving=None)
        cluster.put(web(a=SERVES, b=SERVES), web(a=NOT, b=SERVES))
        cluster.wait(10**6)
        assert (cluster.down(), cluster.endpoints.next_time(), cluster.status.held) == ([], None, 0)

    def test_who_terminates_goes_down_only_where_that_is_asked_for(self) -> None:
        for seconds, down in ((None, []), (5.0, [A, B])):
            cluster = Cluster(terminating=seconds)
            cluster.put(web(a=SERVES, b=SERVES), web(a=ENDING, b=ENDING))
            cluster.wait(5)
            assert cluster.down() == down
            cluster.put(web(a=NOT, b=ENDING))
            assert cluster.table.is_alive(A) == (seconds is None)

    def test_who_is_gone_from_every_slice_goes_down_at_once(self) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES), web("web-b", a=SERVES), web(a=NOT))
        cluster.remove("web-b")
        cluster.put(web("other", service="other", a=SERVES))
        cluster.remove("web-a")
        assert cluster.down() == []
        cluster.remove("other")
        assert (taken_down(cluster.table), cluster.endpoints.next_time()) == ({A: ["demo/other"]}, None)

    def test_who_terminates_counts_from_the_start_also_if_it_is_recalled(self) -> None:
        cluster = Cluster(terminating=5)
        cluster.table.recall([A])
        cluster.relist(web(a=ENDING, b=SERVES))
        cluster.wait(5)
        assert cluster.down() == [A]

    def test_who_has_never_served_is_not_alive(self) -> None:
        """A pod that starts: its peers may be connected to it by then (publishNotReadyAddresses)."""
        cluster = Cluster()
        cluster.relist(web(a=SERVES))
        cluster.put(web(a=SERVES, b=NOT))
        cluster.wait(30)
        assert (cluster.table.is_alive(B), cluster.down()) == (False, [])

    def test_of_what_a_list_shows_that_is_not_known(self) -> None:
        """It may have served before this process began, or while the server was away."""
        cluster = Cluster()
        cluster.relist(web(a=SERVES, b=NOT))
        cluster.wait(30)
        assert cluster.down() == [B]

    def test_who_moves_to_another_slice_keeps_its_time(self) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES, b=SERVES), web(a=NOT, b=SERVES))
        cluster.wait(20)
        cluster.put(web("web-b", a=NOT), web(b=SERVES))
        assert cluster.down() == []
        cluster.wait(10)
        assert cluster.down() == [A]


HTTP, HTTPS = ({"name": name, "protocol": "TCP", "port": port} for name, port in (("http", 80), ("https", 443)))


class TestRecycled:
    """Where the ports of a service change, its slices get others of the endpoints, one after another."""

    @pytest.mark.parametrize(
        "ports",
        [
            [HTTP, HTTPS],
            [HTTP, {**HTTPS, "protocol": "SCTP"}],
            [{**HTTP, "name": "web"}],
            [{**HTTP, "appProtocol": "h2c"}],
        ],
        ids=["another port", "one that is left out", "another name", "another protocol on top"],
    )
    def test_who_is_in_no_slice_for_a_moment_is_alive(self, ports: list[Object]) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES, c=SERVES), web("web-b", b=SERVES), {**web(b=SERVES, c=SERVES), "ports": ports})
        cluster.remove("web-b")
        cluster.wait(4)
        assert cluster.down() == []
        cluster.put({**web("web-c", a=SERVES), "ports": ports})
        cluster.wait(1)
        assert (cluster.down(), cluster.endpoints.next_time()) == ([], None)

    @pytest.mark.parametrize("is_listed", [True, False], ids=["a list lacks it", "its time has come"])
    def test_whose_port_is_gone_goes_down_when(self, is_listed: bool) -> None:
        cluster, update = Cluster(), {**web(a=SERVES), "ports": [{**HTTP, "port": 8080}]}
        cluster.put(web(a=SERVES), update)
        assert (cluster.down(), cluster.endpoints.next_time()) == ([], 5)
        cluster.relist(update) if is_listed else cluster.wait(5)
        assert (taken_down(cluster.table), cluster.endpoints.next_time()) == ({A: ["demo/web"]}, None)

    @pytest.mark.parametrize("is_first", [True, False], ids=["from before", "from afterwards"])
    def test_who_is_in_another_slice_by_then_does_not_wait(self, is_first: bool) -> None:
        cluster = Cluster()
        recycled, other = {**web(b=SERVES), "ports": [{**HTTP, "name": "web"}]}, web("web-b", a=SERVES)
        cluster.put(web(a=SERVES), *((other, recycled) if is_first else (recycled, other)))
        cluster.remove("web-b")
        assert cluster.down() == [A]

    @pytest.mark.parametrize(
        "update",
        [{**web(), "ports": []}, {**web(b=SERVES), "ports": [HTTPS, HTTP]}],
        ids=["a service keeps an empty one when its last pod is gone", "the same ports in another order"],
    )
    def test_not_each_update_of_ports_is_that(self, update: Object) -> None:
        cluster = Cluster()
        cluster.put({**web(a=SERVES), "ports": [HTTP, HTTPS]}, update)
        assert A in cluster.down()


class TestHeld:
    """A broken probe must not cut a whole service that has nowhere to go."""

    def test_the_last_ones_stay_until_another_one_serves(self) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES, b=SERVES), web(a=NOT, b=NOT))
        for _ in range(2):
            cluster.wait(30)
        assert (cluster.down(), cluster.status.held) == ([], 2)
        (warning,) = cluster.warnings
        assert warning.startswith("endpoints of demo/web that do not serve are held")
        cluster.put(web(a=NOT, b=SERVES))
        assert (cluster.down(), cluster.status.held) == ([A], 0)
        cluster.remove("web-a")
        assert cluster.down() == [B]  # what is gone is never held

    def test_who_was_taken_down_because_it_terminates_is_no_other_one(self) -> None:
        cluster = Cluster(terminating=5)
        cluster.put(web(a=SERVES, b=ENDING))
        cluster.wait(5)
        assert cluster.down() == [B]
        cluster.put(web(a=NOT, b=ENDING))
        cluster.wait(30)
        assert (cluster.down(), cluster.status.held) == ([], 1)

    @pytest.mark.parametrize(
        ("other", "is_held"),
        [
            (web("web-b", b=SERVES), False),
            (web("web-b", b=ENDING), False),
            (web("web-b", a=SERVES), True),  # itself, and so alive
            (web("other", service="other", b=SERVES), True),
            ({**web("web-b", b=SERVES), "ports": [{"name": "grpc", "protocol": "TCP", "port": 80}]}, True),
            (endpoint_slice("web-v6", endpoint("fd00::1"), addressType="IPv6"), True),
        ],
        ids=["another slice", "which terminates", "itself", "another service", "another port", "another family"],
    )
    def test_it_is_another_one_of_the_service_port_name_and_family_that_counts(
        self, other: Object, is_held: bool
    ) -> None:
        cluster = Cluster()
        cluster.put(web(a=SERVES), other, web(a=NOT))
        cluster.wait(30)
        assert cluster.down() == ([] if is_held else [A])


class TestWhatIsLeftOut:
    """Counted; and what is not as it should be changes nothing."""

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("fqdn", {"addressType": "FQDN", "endpoints": [endpoint("db.example.com")]}),
            ("sctp", {"ports": [{"name": "http", "protocol": "SCTP", "port": 80}]}),
            ("no_port", {"ports": [{"name": "http", "protocol": "TCP", "port": None}]}),
            ("bad_address", {"endpoints": [endpoint("0.0.0.0")]}),
            ("bad_address", {"addressType": "IPv6", "endpoints": [endpoint("fe80::1")]}),
            ("bad_address", {"addressType": "IPv6", "endpoints": [endpoint("::ffff:10.1.0.1")]}),
        ],
    )
    def test_it_is_no_backend(self, kind: str, change: Object) -> None:
        cluster = Cluster()
        cluster.put({**web(a=SERVES), **change})
        assert (cluster.left_out, cluster.table.backends()) == ([kind], {})
        assert kind in KINDS

    @pytest.mark.parametrize(
        "change",
        [
            {"addressType": "IPv5"},
            {"metadata": {"namespace": "demo"}},
            {"metadata": []},
            {"endpoints": 5},
            {"endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"serving": "yes"}}]},
            {"endpoints": [{"addresses": "10.1.0.1"}]},
            {"ports": False},
            {"ports": [{"port": 70000}]},
            {"ports": [{"port": 80, "protocol": "TCPX"}]},
        ],
        ids=str,
    )
    def test_what_is_no_slice_is_a_value_error(self, change: Object) -> None:
        with pytest.raises(ValueError, match="Error"):
            Cluster().read({**web(a=SERVES), **change})

    def test_all_that_may_be_unset(self) -> None:
        bare = {"metadata": {"namespace": "demo", "name": "bare"}, "addressType": "IPv4"}
        cluster = Cluster()
        for members in (
            {},
            {"endpoints": None, "ports": None},
            {"endpoints": [{"addresses": ["10.1.0.1"]}], "ports": [{"port": 80}]},
        ):
            cluster.put({**bare, **members})
        assert cluster.table.backends() == {A: True}


addresses = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
backends = [Backend(address, port, "tcp") for address in addresses for port in (80, 8080)]
members = st.dictionaries(st.sampled_from(addresses), st.sampled_from((SERVES, SERVES, NOT, NOT, ENDING)))
ports = st.sampled_from(((80,), (80,), (80, 8080), (8080,)))
slices = st.tuples(st.sampled_from("abc"), st.sampled_from(("web", "web", "db")), members, ports).map(
    lambda drawn: endpoint_slice(
        drawn[0],
        *(endpoint(a, **c) for a, c in drawn[2].items()),
        service=drawn[1],
        ports=[{**HTTP, "port": port} for port in drawn[3]],
    )
)
steps = st.one_of(
    slices.map(lambda one: ("put", one)),
    slices.map(lambda one: ("put", one)),
    st.sampled_from("abc").map(lambda name: ("remove", name)),
    st.lists(slices, max_size=3).map(lambda several: ("list", several)),
    st.sampled_from((1.0, 4.0, 15.0, 30.0)).map(lambda seconds: ("wait", seconds)),
)


@settings(max_examples=10 * settings().max_examples)
@given(st.lists(steps, max_size=30))
def test_who_is_alive_and_who_goes_down(several: list[tuple[str, Any]]) -> None:
    """Whatever comes in whatever order. Serving is alive, being nowhere is not. Between these one goes down who has not
    served for 30 s, while another one of the service does, and nobody else. Who was in a slice whose ports changed, and
    is in none since, counts as being there for 5 s, but for a list.
    """
    cluster, shown = Cluster(), dict[str, Object]()
    left: dict[Backend, tuple[float, Place]] = {}  # the slice whose ports changed; and since when it is in no other
    since: dict[Backend, float] = {}  # in some slice, and not serving in any
    unchanged: dict[Backend, float] = {}  # so long in the same slices, as it is
    alive = dict.fromkeys(backends, False)
    before: dict[Backend, list[Place]] = {}
    for name, argument in several:
        if name == "put":
            old = shown.get(argument["metadata"]["name"], argument)
            shown[argument["metadata"]["name"]] = argument
            if _ports(old) != _ports(argument) and argument["endpoints"]:
                left.update((one, (cluster.now, place)) for one in backends for place in _places([old], one))
            cluster.put(argument)
        elif name == "remove":
            shown.pop(argument, None)
            cluster.remove(argument)
        elif name == "list":
            left.clear()
            shown = {one["metadata"]["name"]: one for one in argument}
            cluster.relist(*shown.values())
        else:
            cluster.wait(argument)
        was, alive = alive, {one: cluster.table.is_alive(one) for one in backends}
        assert {*cluster.down()} == {one for one in backends if was[one] and not alive[one]}
        places = {one: [*_places(shown.values(), one)] for one in backends}
        left = {one: (at, p) for one, (at, p) in left.items() if not places[one] and cluster.now - at < 5}
        places.update((one, [place]) for one, (_, place) in left.items())
        for one in backends:
            serves = any(serves for *_, serves in places[one])
            if serves or not places[one]:
                since.pop(one, None)
                assert alive[one] == serves
                continue
            began = since.setdefault(one, cluster.now)
            if places[one] != before.get(one):
                unchanged[one] = cluster.now
            others = [other for other in backends if other.address != one.address]
            serving = {service for other in others for _, service, serves in places[other] if serves}
            is_no_last_one = [service in serving for _, service, _ in places[one]]
            if was[one] and not alive[one]:
                assert cluster.now - began >= 30
                assert any(is_no_last_one)
            if cluster.now - unchanged[one] >= 30 and all(is_no_last_one):
                assert not alive[one]
        before = places


def _places(several: Iterable[Object], backend: Backend) -> Iterator[Place]:
    """The slices that a backend is in, their services, and whether it serves by that."""
    for one in several:
        for member in one["endpoints"]:
            if member["addresses"] == [str(backend.address)] and backend.port in _ports(one):
                labels, conditions = one["metadata"]["labels"], member["conditions"]
                yield one["metadata"]["name"], labels["kubernetes.io/service-name"], conditions["serving"]


def _ports(one: Object) -> set[int]:
    return {port["port"] for port in one["ports"]}
