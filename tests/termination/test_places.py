"""How the loop finds namespaces again and again: threads are looked at once a minute, for they cost the most."""

from __future__ import annotations

import errno
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import KernelError, NetworkNamespace
from socklb.kernel.discovery import DiscoveredNamespaces, UnsearchedNamespace, discover_namespaces
from socklb.termination import places as places_module

from ..kernel.test_discovery_threads import moved

MINUTE = 60


def of_process(number: int) -> NetworkNamespace:
    return NetworkNamespace(f"pid {number}", f"/proc/{number}/ns/net", 4, number)


def of_thread(number: int) -> NetworkNamespace:
    return NetworkNamespace(f"tid {number}", f"/proc/1/task/{number}/ns/net", 4, number)


class Pass(NamedTuple):
    """What there is at a pass, and how long after the last one it comes."""

    after: float
    processes: set[int]
    threads: set[int]
    fails: bool


numbers = st.sets(st.integers(1, 3))
passes = st.builds(Pass, st.sampled_from((0.0, 1.0, 20.0, 59.0, 60.0, 300.0)), numbers, numbers, st.booleans())


class Host:
    """Stands for `discover_namespaces` and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks: list[float] = []  # when threads were looked at
        self.at: Pass
        self.refused: tuple[UnsearchedNamespace, ...] = ()

    def monotonic(self) -> float:
        return self.now

    def discover_namespaces(self, *, threads: bool = True) -> DiscoveredNamespaces:
        if self.at.fails:
            raise KernelError(errno.EMFILE, "list /proc: Too many open files")
        if threads:
            self.looks.append(self.now)
        only_threads = self.at.threads - self.at.processes if threads else set()
        found = DiscoveredNamespaces([*map(of_process, self.at.processes), *map(of_thread, only_threads)])
        found.refused = self.refused = (UnsearchedNamespace("/x", f"at {self.now}", 1),)
        return found


class TestDiscovery:
    @given(st.lists(passes, max_size=12))
    def test_threads_are_looked_at_once_a_minute_and_remembered_meanwhile(self, passes: list[Pass]) -> None:
        host, remembered = Host(), set[int]()
        with (
            mock.patch.object(places_module, "discover_namespaces", host.discover_namespaces),
            mock.patch.object(places_module, "monotonic", host.monotonic),
        ):
            places = places_module.Places("all")
            for each in passes:
                host.now += each.after
                host.at = each
                looks = len(host.looks)
                if each.fails:
                    with pytest.raises(KernelError):
                        places.now()
                    continue
                found = places.now()
                if len(host.looks) > looks:
                    remembered = each.threads - each.processes
                assert {namespace.inode for namespace in found} == each.processes | remembered
                assert len(found) == len({*found})
                assert found.refused == host.refused
                assert {one.name for one in found} >= {of_process(number).name for number in each.processes}
                assert host.now - host.looks[-1] < MINUTE
        assert all(later - earlier >= MINUTE for earlier, later in zip(host.looks, host.looks[1:]))

    @pytest.mark.kernel
    def test_on_the_kernel(self, network: None) -> None:
        places = places_module.Places("all")
        with (
            moved() as thread,
            mock.patch.object(places_module, "discover_namespaces", wraps=discover_namespaces) as spy,
        ):
            found = [list(places.now()) for _ in range(3)]
        assert found == [[NetworkNamespace.current(), thread.namespace]] * 3
        assert [call.kwargs["threads"] for call in spy.call_args_list] == [True, False, False]
