"""Backends: an address, a port and a protocol, and their text form."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import Backend
from socklb.filters.backend import check_backend

from ..strategies import v4_addresses
from .trees import backends

A = Backend("10.0.0.1", 80, "tcp")


class TestBackend:
    """An address (a mapped one becomes v4), a port, a protocol; str() parses back."""

    @given(backends)
    def test_what_is_written_parses_back(self, backend: Backend) -> None:
        assert Backend.parse(str(backend)) == backend

    @given(st.text(max_size=30) | st.from_regex(r"\[?[0-9a-f:.]{1,20}\]?:[0-9]{1,6}/(TCP|udp|x)", fullmatch=True))
    def test_any_text_is_a_backend_or_a_value_error_that_quotes_it(self, text: str) -> None:
        problem = ""
        try:
            backend = Backend.parse(text)
        except ValueError as error:
            problem = str(error)
        assert repr(text) in problem if problem else Backend.parse(str(backend)) == backend

    @pytest.mark.parametrize(
        ("text", "backend", "written"),
        [
            ("10.0.0.1:80/TCP", A, "10.0.0.1:80/TCP"),
            ("10.0.0.1:80/tcp", A, "10.0.0.1:80/TCP"),
            ("[::1]:53/UDP", Backend("::1", 53, "udp"), "[::1]:53/UDP"),
            ("[::ffff:10.0.0.1]:65535/UDP", Backend("10.0.0.1", 65535, "udp"), "10.0.0.1:65535/UDP"),
            ("169.254.0.1:80/TCP", Backend("169.254.0.1", 80, "tcp"), "169.254.0.1:80/TCP"),
            ("[::ffff:169.254.0.1]:80/TCP", Backend("169.254.0.1", 80, "tcp"), "169.254.0.1:80/TCP"),
            ("[fe80::1%eth0]:80/TCP", Backend("fe80::1%eth0", 80, "tcp"), "[fe80::1%eth0]:80/TCP"),
            ("[FE80:0::1%2]:80/tcp", Backend(IPv6Address("fe80::1%2"), 80, "tcp"), "[fe80::1%2]:80/TCP"),
        ],
    )
    def test_parsed_and_written(self, text: str, backend: Backend, written: str) -> None:
        assert Backend.parse(text) == backend
        assert str(backend) == written

    @given(v4_addresses.filter(lambda address: not address.is_unspecified), st.integers(1, 65535))
    def test_a_mapped_address_is_the_v4_one(self, address: IPv4Address, port: int) -> None:
        mapped = Backend(f"::ffff:{address}", port, "tcp")
        assert mapped == Backend(address, port, "tcp")
        assert (mapped.address, str(mapped)) == (address, f"{address}:{port}/TCP")

    def test_address_is_an_object_and_protocol_a_word_however_they_were_given(self) -> None:
        for given_address, given_protocol in (("fd00::1", "udp"), (IPv6Address("fd00::1"), 17)):
            backend = Backend(given_address, 53, given_protocol)
            assert (backend.address, backend.port, backend.protocol) == (ip_address("fd00::1"), 53, "udp")

    def test_hashable_and_unlike_in_each_part(self) -> None:
        others = [Backend("10.0.0.9", 80, "tcp"), Backend("10.0.0.1", 81, "tcp"), Backend("10.0.0.1", 80, "udp")]
        others += [Backend(f"fe80::1%{link}", 80, "tcp") for link in ("eth0", "eth1", "1")]
        assert len({A, Backend("10.0.0.1", 80, "tcp"), *others}) == 7

    def test_a_local_one_is_another_one_in_each_place(self) -> None:
        kinds = [
            ("127.0.0.2", "", True),
            ("::1", "", True),
            ("::ffff:127.0.0.1", "", True),
            ("fe80::1%eth0", "eth0", True),
        ]
        kinds += [("169.254.0.1", "", False), ("10.0.0.1", "", False), ("2001:db8::1", "", False)]
        for address, link, is_local in kinds:
            backend = Backend(address, 80, "tcp")
            assert (backend.link, backend.is_local) == (link, is_local)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "names no protocol"),
            ("10.0.0.1:80", "names no protocol"),
            ("/TCP", "names no protocol"),
            ("10.0.0.1:80/SCTP", "sctp"),
            ("10.0.0.1:80/", "protocol"),
            ("10.0.0.1/TCP", "has no port"),
            (":80/TCP", "has no port"),
            ("10.0.0.1:/TCP", "has no port"),
            ("10.0.0.1:+80/TCP", "has no port"),
            ("10.0.0.1: 80/TCP", "has no port"),
            ("10.0.0.1:\u0668\u0660/TCP", "has no port"),
            ("10.0.0.1:000080/TCP", "has no port"),
            ("10.0.0.1:0/TCP", "port 0 is outside 1..65535"),
            ("10.0.0.1:65536/TCP", "port 65536 is outside 1..65535"),
            ("::1:53/UDP", "in brackets"),
            ("[10.0.0.1]:53/UDP", "in brackets"),
            ("[::1:53/UDP", "in brackets"),
            ("web:80/TCP", "web"),
            ("10.0.0.256:80/TCP", "10.0.0.256"),
            ("10.0.0.0/8:80/TCP", "10.0.0.0/8"),
            ("0.0.0.0:80/TCP", "unspecified address"),
            ("[::]:80/TCP", "unspecified address"),
            ("[::ffff:0.0.0.0]:80/TCP", "unspecified address"),
            ("[fe80::1]:80/TCP", "name its link, as in fe80::1%eth0"),
            ("[febf::1]:80/TCP", "name its link"),
            ("[fe80::1%]:80/TCP", "fe80::1%"),
            ("[fe80::1%eth0%1]:80/TCP", "fe80::1%eth0%1"),
            ("[fe80::1%a b]:80/TCP", "'a b' is no interface"),
            ("[fe80::1%eth0\n]:80/TCP", "is no interface"),
            ("[fe80::1%0]:80/TCP", "'0' is no interface"),
            ("[fe80::1%02]:80/TCP", "'02' is no interface"),
            (f"[fe80::1%{'x' * 128}]:80/TCP", "127 bytes"),
            ("[2001:db8::1%eth0]:80/TCP", "only a link-local address"),
            ("[::1%lo]:80/TCP", "only a link-local address"),
            ("[::ffff:169.254.0.1%eth0]:80/TCP", "only a link-local address"),
            ("169.254.0.1%eth0:80/TCP", "169.254.0.1%eth0"),
        ],
    )
    def test_what_does_not_parse_is_quoted_with_what_is_wrong(self, text: str, problem: str) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
            Backend.parse(text)
        assert repr(text) in str(caught.value)
        assert problem in str(caught.value)

    def test_wrong_types(self) -> None:
        for arguments in ((167772161, 80, "tcp"), (b"\x0a\0\0\1", 80, "tcp"), (None, 80, "tcp")):
            with pytest.raises(TypeError, match="address of a backend"):
                Backend(*arguments)
        for text in (b"10.0.0.1:80/TCP", None, A):
            with pytest.raises(TypeError, match="parsed from a str"):
                Backend.parse(text)  # type: ignore[arg-type]
        for port in ("80", 80.0, True, None):
            with pytest.raises(TypeError, match="port of a backend"):
                Backend("10.0.0.1", port, "tcp")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("change", "error"),
        [({"port": 99999}, ValueError), ({"port": "80"}, TypeError), ({"address": "::"}, ValueError),
         ({"address": 1}, TypeError), ({"protocol": "sctp"}, ValueError)],
        ids=str,
    )  # fmt: skip
    def test_a_copy_with_a_change_is_checked_too(self, change: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            A._replace(**change)
        with pytest.raises(error):
            Backend._make({**A._asdict(), **change}.values())
        assert A._replace(address="::ffff:10.0.0.2", protocol=17) == Backend("10.0.0.2", 80, "udp")

    @pytest.mark.parametrize("other", ["10.0.0.1:80/TCP", ("10.0.0.1", 80, "tcp"), None], ids=repr)
    def test_a_text_or_tuple_is_none(self, other: Any) -> None:
        check_backend(A)
        with pytest.raises(TypeError, match=r"Backend\.parse\(\)"):
            check_backend(other)
