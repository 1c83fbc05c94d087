"""The reverse-NAT maps: did the balancer send this socket to its backend?"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from socklb import KernelError, NotPermitted, NotSupported
from socklb.cli.output import exit_code
from socklb.reverse_nat import bpf
from socklb.reverse_nat.layout import ReverseSkKey, ReverseSkValue
from socklb.reverse_nat.maps import DEFAULT_DIRECTORY, RevNatEntry, RevNatMaps

from .. import this_kernel
from ..sockets import cookie_of, in_child, leave_descriptors, without_privilege
from .balancer.clients import BACKEND_PORT, CASES, PORT, Case, Clients
from .bpf_maps import Maps, descriptors

V4, V6 = "cilium_lb4_reverse_sk", "cilium_lb6_reverse_sk"

ONE = RevNatEntry(0xFFFFFFFFFFFFFFFF, IPv4Address("10.0.1.5"), 8080, IPv4Address("10.96.0.10"), 80, 7)
TWO = RevNatEntry(2, IPv4Address("10.0.1.5"), 65535, IPv4Address("10.96.0.10"), 443, 0xFFFF)
SIX = RevNatEntry(1, IPv6Address("fd00::1:5"), 8080, IPv6Address("fd00::600a"), 80, 8)


def record(maps: Maps, entry: RevNatEntry, *, key_size: int = 32) -> None:
    """Do what the balancer does when it sends a socket to a backend."""
    v4 = entry.backend_address.version == 4
    key = ReverseSkKey(entry.cookie, entry.backend_address.packed, entry.backend_port).encode()
    value = ReverseSkValue(entry.service_address.packed, entry.service_port, entry.rev_nat_index).encode()
    maps.put(V4 if v4 else V6, key if v4 else key.ljust(key_size, b"\0"), value)


def forget(maps: Maps, entry: RevNatEntry) -> None:
    maps.delete(V4, ReverseSkKey(entry.cookie, entry.backend_address.packed, entry.backend_port).encode())


def both(maps: Maps) -> str:
    """A directory with both maps, as a balancer pins them."""
    maps.lru(V4, 16, 8)
    maps.lru(V6, 32, 20)
    return maps.directory


def refusal(directory: str, kind: type[Exception]) -> Exception:
    """The error that opening ends with, of this very kind; no descriptor is left open."""
    before = descriptors()
    with pytest.raises(kind) as caught:
        RevNatMaps.open(directory)
    assert (type(caught.value), descriptors()) == (kind, before)
    return caught.value


def said(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


class TestNoDirectory:
    """Bad input, exit 2, unless permission is missing."""

    def test_nothing_or_a_file_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path / "missing", tmp_path / "missing" / "deeper", tmp_path / "file"):
            error = refusal(str(path), ValueError)
            assert said(error).startswith(f"no directory {path}: reverse-NAT maps are where a balancer pins them")
            assert exit_code(error) == 2
        refusal("/run/nul\0", ValueError)

    def test_a_loop_of_links(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        error = refusal(str(tmp_path / "loop"), KernelError)
        assert said(error) == f"look into {tmp_path / 'loop'}: Too many levels of symbolic links"

    @pytest.mark.kernel
    def test_one_may_not_look_there(self, maps: Maps) -> None:
        inner = Path(maps.directory) / "tc"
        inner.mkdir()
        os.chmod(maps.directory, 0)
        text, code = without_privilege(lambda: (said(e := refusal(str(inner), NotPermitted)), exit_code(e)))
        inner.rmdir()
        assert (text, code) == (str(bpf.bpf_error(errno.EACCES, f"look into {inner}").strerror), 4)


@pytest.mark.kernel
class TestOpen:
    """Both maps, or the one that is there; whatever else has their names is refused."""

    def test_neither(self, maps: Maps) -> None:
        maps.lru("cilium_lb4_services_v2", 16, 8)
        error = refusal(maps.directory, ValueError)
        assert said(error) == f"no reverse-NAT map in {maps.directory}: neither {V4} nor {V6} is pinned there"
        assert exit_code(error) == 2

    @pytest.mark.parametrize("size", [28, 32])
    def test_layouts_that_are_known(self, maps: Maps, size: int) -> None:
        maps.lru(V4, 16, 8)
        maps.lru(V6, size, 20)
        record(maps, ONE)
        record(maps, SIX, key_size=size)
        with RevNatMaps.open(Path(maps.directory)) as opened:
            assert list(opened.entries()) == [ONE, SIX]
            assert opened.contains(ONE.cookie, ONE.backend_address, ONE.backend_port)
            assert opened.contains(SIX.cookie, SIX.backend_address, SIX.backend_port)

    @pytest.mark.parametrize(
        ("name", "type", "key_size", "value_size"),
        [
            (V4, 1, 16, 8),
            (V4, 9, 32, 20),
            (V4, 9, 16, 12),
            (V6, 10, 32, 20),
            (V6, 9, 30, 20),
            (V6, 9, 16, 8),
        ],
    )
    def test_a_foreign_layout(self, maps: Maps, name: str, type: int, key_size: int, value_size: int) -> None:
        """Beside a map that is in order, which is closed again. Exit 3: there is nothing wrong with the input."""
        both(maps)
        path = maps.make(name, type, key_size, value_size)
        error = refusal(maps.directory, NotSupported)
        expected = f"keys of {'16' if name == V4 else '28 or 32'} bytes and values of {8 if name == V4 else 20}"
        assert said(error) == (
            f"{path}: unknown layout: expected type 9 (LRU hash), {expected}, got type {type}, "
            f"keys of {key_size} and values of {value_size}"
        )
        assert exit_code(error) == 3

    def test_something_else_by_that_name(self, maps: Maps, tmp_path: Path) -> None:
        both(maps)
        (tmp_path / V4).touch()
        for path, text in (
            (maps.make_program(V6), " is not a BPF map"),
            (str(tmp_path / V4), " is not a pinned BPF map, or a security module forbids opening it"),
        ):
            error = refusal(os.path.dirname(path), ValueError)
            assert (said(error), exit_code(error)) == (path + text, 2)

    def test_a_pin_that_one_may_not_read(self, maps: Maps) -> None:
        directory = both(maps)
        os.chmod(maps.path(V4), 0)
        text = without_privilege(lambda: said(refusal(directory, NotPermitted)))
        assert text == bpf.bpf_error(this_kernel.refusal_of_a_pin(), f"open {maps.path(V4)}").strerror

    def test_the_default_is_where_cilium_pins_them(self) -> None:
        assert DEFAULT_DIRECTORY == "/sys/fs/bpf/tc/globals"
        assert RevNatMaps.open.__func__.__defaults__ == (DEFAULT_DIRECTORY,)  # type: ignore[attr-defined]


@pytest.mark.kernel
class TestContains:
    """By cookie, address and port, all three. A v4 backend of a v6 socket is in the v4 map."""

    @pytest.mark.parametrize("kind", [str, ip_address], ids=["str", "object"])
    def test_what_was_recorded_and_nothing_else(self, maps: Maps, kind: Callable[[str], str]) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            for entry in (ONE, TWO, SIX):
                record(maps, entry)
                address = kind(str(entry.backend_address))
                assert opened.contains(entry.cookie, address, entry.backend_port)
                assert not opened.contains(entry.cookie - 1, address, entry.backend_port)
                assert not opened.contains(entry.cookie, address, entry.backend_port - 1)
                assert not opened.contains(entry.cookie, kind(str(entry.backend_address + 1)), entry.backend_port)
                assert not opened.contains(entry.cookie, kind(str(entry.service_address)), entry.service_port)

    def test_a_mapped_address_is_the_v4_one(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            record(maps, ONE)
            record(maps, SIX._replace(backend_address=IPv6Address("::ffff:10.0.1.5")))
            for mapped in ("::ffff:10.0.1.5", IPv6Address("::ffff:10.0.1.5")):
                assert opened.contains(ONE.cookie, mapped, ONE.backend_port)
                assert not opened.contains(SIX.cookie, mapped, SIX.backend_port)
            for other in ("::ffff:10.0.1.6", "::10.0.1.5", "64:ff9b::10.0.1.5"):
                assert not opened.contains(ONE.cookie, other, ONE.backend_port)

    @pytest.mark.parametrize(("name", "entry", "missing"), [(V4, ONE, SIX), (V6, SIX, ONE)], ids=["v4", "v6"])
    def test_one_map_alone(self, maps: Maps, name: str, entry: RevNatEntry, missing: RevNatEntry) -> None:
        """A host without IPv6 has the v4 map alone; the other contains nothing."""
        maps.remove(V6 if name == V4 else V4)
        maps.lru(name, *((16, 8) if name == V4 else (32, 20)))
        record(maps, entry)
        with RevNatMaps.open(maps.directory) as opened:
            assert opened.contains(entry.cookie, entry.backend_address, entry.backend_port)
            assert not opened.contains(missing.cookie, missing.backend_address, missing.backend_port)
            assert list(opened.entries()) == [entry]

    @pytest.mark.parametrize(
        ("arguments", "kind", "word"),
        [
            ((1, "10.0.0.256", 80), ValueError, "10.0.0.256"),
            ((1, "", 80), ValueError, "''"),
            ((1, 0x0A000001, 80), TypeError, "167772161"),
            ((1, b"\n\0\0\1", 80), TypeError, r"b'\\n"),
            ((1, "10.0.0.1", 65536), ValueError, "65536"),
            ((1, "::1", -1), ValueError, "-1"),
            ((-1, "10.0.0.1", 80), ValueError, "-1"),
            ((1 << 64, "::1", 80), ValueError, str(1 << 64)),
            ((1, "::1", "80"), ValueError, "'80'"),
        ],
        ids=repr,
    )
    def test_a_wrong_argument(
        self, maps: Maps, arguments: tuple[int, str, int], kind: type[Exception], word: str
    ) -> None:
        """Whether or not the map is there that would be asked."""
        maps.lru(V4, 16, 8)
        with RevNatMaps.open(maps.directory) as opened, pytest.raises(kind, match=word):
            opened.contains(*arguments)


@pytest.mark.kernel
class TestEntries:
    """Every entry of both maps, decoded."""

    def test_they_are_what_was_recorded(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            assert list(opened.entries()) == []
            for entry in (SIX, TWO, ONE):
                record(maps, entry)
            *v4, v6 = opened.entries()
            assert (sorted(v4), v6) == ([TWO, ONE], SIX)

    def test_one_that_vanishes_before_it_is_looked_up_is_left_out(
        self, maps: Maps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            record(maps, ONE)
            record(maps, TWO)
            keys = bpf.BpfMap.keys

            def and_one_goes(self: bpf.BpfMap) -> list[bytes]:
                found = list(keys(self))
                forget(maps, ONE)
                return found

            monkeypatch.setattr(bpf.BpfMap, "keys", and_one_goes)
            monkeypatch.setattr(bpf.BpfMap, "items", bpf.BpfMap._items_one_by_one)  # before Linux 5.6
            assert list(opened.entries()) == [TWO]

    def test_reading_on_while_the_maps_are_reopened_and_closed(self, maps: Maps) -> None:
        directory = both(maps)
        for entry in (ONE, TWO, SIX):
            record(maps, entry)
        before = descriptors()
        opened = RevNatMaps.open(directory)
        entries = opened.entries()
        first = next(entries)
        opened.reopen()
        second = next(entries)
        opened.close()
        assert sorted((first, second, *entries)) == sorted((ONE, TWO, SIX))
        assert descriptors() == before

    def test_where_descriptors_have_run_out(self, maps: Maps) -> None:
        maps.lru(V4, 16, 8)

        def read() -> int | None:
            with RevNatMaps.open(maps.directory) as rev_nat:
                leave_descriptors(0)
                with pytest.raises(KernelError) as caught:
                    next(rev_nat.entries())
            return caught.value.errno

        assert in_child(read) == errno.EMFILE

    def test_an_iterator_that_is_closed_leaves_no_descriptor(self, maps: Maps) -> None:
        directory = both(maps)
        record(maps, ONE)
        with RevNatMaps.open(directory) as opened:
            before = descriptors()
            entries = opened.entries()
            assert next(entries) == ONE
            assert len(descriptors()) == len(before) + 2
            entries.close()  # type: ignore[attr-defined]
            assert descriptors() == before


@pytest.mark.kernel
class TestReopen:
    """What is pinned now is used; after an error, what was used before."""

    def test_the_same_maps_and_others_by_the_same_names(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            record(maps, ONE)
            before = descriptors()
            opened.reopen()
            assert (list(opened.entries()), len(descriptors())) == ([ONE], len(before))
            both(maps)  # an agent that is upgraded
            record(maps, TWO)
            assert list(opened.entries()) == [ONE]
            opened.reopen()
            assert list(opened.entries()) == [TWO]

    def test_one_is_removed_and_comes_back(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            record(maps, SIX)
            maps.remove(V6)
            opened.reopen()
            assert not opened.contains(SIX.cookie, SIX.backend_address, SIX.backend_port)
            maps.lru(V6, 28, 20)
            record(maps, SIX, key_size=28)
            opened.reopen()
            assert opened.contains(SIX.cookie, SIX.backend_address, SIX.backend_port)

    def test_an_error_changes_nothing(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            record(maps, ONE)
            before = descriptors()
            maps.remove(V4)
            maps.remove(V6)
            with pytest.raises(ValueError, match=f"no reverse-NAT map in {maps.directory}"):
                opened.reopen()
            maps.make_program(V6)
            with pytest.raises(ValueError, match="is not a BPF map"):
                opened.reopen()
            assert list(opened.entries()) == [ONE]
        assert len(descriptors()) == len(before) - 2 + 1  # the program's

    def test_what_is_closed_stays_closed(self, maps: Maps) -> None:
        directory = both(maps)
        before = descriptors()
        opened = RevNatMaps.open(directory)
        opened.close()
        opened.close()
        uses: list[Callable[[], object]] = [
            opened.reopen,
            lambda: opened.contains(1, "10.0.0.1", 80),
            lambda: next(opened.entries()),
        ]
        for use in uses:
            with pytest.raises(ValueError, match=f"the reverse-NAT maps of {directory} are closed"):
                use()
        assert descriptors() == before


@pytest.mark.kernel
class TestThreads:
    """Any number may look up at once, while others reopen: none gets a descriptor that is closed, or another's."""

    def test_look_ups_while_others_reopen(self, maps: Maps) -> None:
        with RevNatMaps.open(both(maps)) as opened:
            for entry in (ONE, SIX):
                record(maps, entry)

            def look_up(_: int) -> set[bool]:
                return {
                    opened.contains(entry.cookie, entry.backend_address, entry.backend_port)
                    for _ in range(300)
                    for entry in (ONE, SIX)
                } | {{*opened.entries()} == {ONE, SIX}}

            def reopen(_: int) -> set[bool]:
                for _ in range(200):
                    opened.reopen()
                return {True}

            with ThreadPoolExecutor(4) as pool:
                futures = [pool.submit(work, number) for number in range(8) for work in (look_up, reopen)]
            assert set().union(*(future.result() for future in futures)) == {True}


@pytest.mark.kernel
@pytest.mark.parametrize("case", CASES, ids=str)
class TestOfABalancer:
    """The maps of a real balancer, asked with the peer's address as the socket has it."""

    def test_they_have_the_sockets_that_it_sent_and_no_other(self, clients: Clients, case: Case) -> None:
        backend, other = case.backends
        clients.set_service(case, backend)
        sent, direct = clients.connect(case), clients.connect(case, backend, BACKEND_PORT)
        with RevNatMaps.open(clients.balancer.directory) as opened:
            for peer in (backend, case.called(backend)):
                assert opened.contains(cookie_of(sent), peer, BACKEND_PORT)
                assert not opened.contains(cookie_of(direct), peer, BACKEND_PORT)
            assert not opened.contains(cookie_of(sent), other, BACKEND_PORT)
            assert not opened.contains(cookie_of(sent), case.service, PORT)
            addresses = ip_address(backend), BACKEND_PORT, ip_address(case.service), PORT
            assert list(opened.entries()) == [RevNatEntry(cookie_of(sent), *addresses, rev_nat_index=1)]
            sent.close()
            assert list(opened.entries()) == []
