"""Response attributes: what decodes to a value encodes to the very bytes it came from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb.wire.attributes import NUMBERS, Md5Signature, decode_attribute, encode_value, extension_bits
from socklb.wire.netlink import encode_attributes
from socklb.wire.records import Record

from ..strategies import ATTRIBUTE_VALUES, attribute_runs, damaged
from . import golden

AF_INET = 2

NAMES = sorted(ATTRIBUTE_VALUES)
STRUCTURES = ("meminfo", "info", "vegasinfo", "skmeminfo", "dctcpinfo", "bbrinfo", "sockopt")
any_attribute = pytest.mark.parametrize("name", NAMES)


def payload_of(name: str, value: Any) -> bytes:
    return encode_value(name, value)[1]


def test_the_numbers_of_linux_inet_diag_h() -> None:
    assert list(NUMBERS.items()) == [
        ("meminfo", 1), ("info", 2), ("vegasinfo", 3), ("cong", 4), ("tos", 5), ("tclass", 6), ("skmeminfo", 7),
        ("shutdown", 8), ("dctcpinfo", 9), ("protocol", 10), ("skv6only", 11), ("pad", 14), ("mark", 15),
        ("bbrinfo", 16), ("class_id", 17), ("md5sig", 18), ("ulp_info", 19), ("cgroup_id", 21), ("sockopt", 22),
    ]  # fmt: skip
    assert sorted(NUMBERS) == NAMES


class TestBothWays:
    """A value comes back from its bytes, and bytes come back from whatever they were decoded to, fitting or not."""

    @any_attribute
    @given(st.data())
    def test_a_value_comes_back(self, name: str, data: st.DataObject) -> None:
        value = data.draw(ATTRIBUTE_VALUES[name])
        decoded = decode_attribute(*encode_value(name, value))
        assert decoded == (name, value)
        assert type(decoded[1]) is type(value)

    @any_attribute
    @given(st.data(), st.sampled_from((0, 0x4000, 0x8000, 0xC000)))
    def test_a_payload_comes_back_whatever_the_flags(self, name: str, data: st.DataObject, flags: int) -> None:
        fitting = ATTRIBUTE_VALUES[name].map(lambda value: payload_of(name, value))
        payload = data.draw(damaged(fitting) | attribute_runs.map(encode_attributes) | st.binary(max_size=256))
        key, value = decode_attribute(NUMBERS[name] | flags, payload)
        assert key == name
        assert isinstance(value, Record) == (name in STRUCTURES)
        assert encode_value(name, value) == (NUMBERS[name], payload)

    @given(
        st.integers(0, 0x3FFF).filter(lambda number: number not in NUMBERS.values()) | st.sampled_from((12, 13, 20)),
        st.sampled_from((0, 0x4000, 0x8000, 0xC000)),
        st.binary(max_size=20),
    )
    def test_an_unknown_one_is_kept_under_its_number(self, number: int, flags: int, payload: bytes) -> None:
        assert decode_attribute(number | flags, payload) == (number, payload)
        assert encode_value(number, payload) == (number, payload)


class TestPayloads:
    """The value of a payload; one of another form is kept as it is."""

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            *[(name, 1) for name in ("tos", "tclass", "shutdown", "protocol", "skv6only")],
            *[(name, 4) for name in ("mark", "class_id")],
            ("cgroup_id", 8),
        ],
    )
    def test_a_number_has_its_size(self, name: str, size: int) -> None:
        assert decode_attribute(NUMBERS[name], b"\xff" * size) == (name, 256**size - 1)
        for other in {*range(10)} - {size}:
            assert decode_attribute(NUMBERS[name], b"\xff" * other) == (name, b"\xff" * other)

    @pytest.mark.parametrize("payload", [b"", b"bbr", b"bbr\0\0", b"b\0r\0", b"b\xffr\0"])
    def test_a_text_has_one_nul_and_that_at_its_end(self, payload: bytes) -> None:
        assert decode_attribute(NUMBERS["cong"], b"bbr\0") == ("cong", "bbr")
        assert decode_attribute(NUMBERS["cong"], payload) == ("cong", payload)

    def test_a_nest_that_is_cut_is_kept_whole(self) -> None:
        whole = payload_of("ulp_info", (("name", "tls"), ("tls", (("version", 0x304), ("zc_ro_tx", True)))))
        assert decode_attribute(NUMBERS["ulp_info"], whole[:-1]) == ("ulp_info", whole[:-1])

    def test_an_unfit_member_of_a_nest_is_kept_and_the_others_decoded(self) -> None:
        inner = encode_attributes([(1, b"\1\2\3"), (2, b"\x33\x33"), (5, b"\1"), (6, b""), (77, b"new")])
        payload = encode_attributes([(1, b"tls\0"), (2, inner)])
        _, value = decode_attribute(NUMBERS["ulp_info"], payload)
        tls = (("version", b"\1\2\3"), ("cipher", 0x3333), ("zc_ro_tx", b"\1"), ("rx_no_pad", True), (77, b"new"))
        assert value == (("name", "tls"), ("tls", tls))


class TestWrongArguments:
    """An unknown name or an unfit value is ValueError, and names it."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tos", 256), ("tos", -1), ("tos", "1"), ("mark", 1 << 32), ("cgroup_id", None), ("cong", 3),
            ("cong", "\xe4"), ("info", 3), ("md5sig", (3,)), ("ulp_info", 3),
            ("ulp_info", (3,)), ("ulp_info", (("unheard", 1),)), ("ulp_info", (("tls", (("version", 1 << 16),)),)),
            ("pad", 3), (99, "text"),
        ],
    )  # fmt: skip
    def test_an_unfit_value(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"attribute {name} cannot be "):
            encode_value(name, value)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="unknown attribute 'nope'; known are meminfo, info"):
            encode_value("nope", 1)


class TestExtensionBits:
    """idiag_ext has bit N - 1 for INET_DIAG_N, up to SHUTDOWN; some attributes share one."""

    @pytest.mark.parametrize(
        ("names", "bits"),
        [
            ((), 0),
            ("info", 0x02),
            (["meminfo"], 0x01),
            (("info", "cong", "info"), 0x0A),
            (("tos", "tclass", "skmeminfo", "shutdown"), 0xF0),
            *[((name,), 0x04) for name in ("vegasinfo", "dctcpinfo", "bbrinfo")],
            (("class_id",), 0x20),
        ],
    )
    def test_names_become_bits(self, names: Any, bits: int) -> None:
        assert extension_bits(names) == bits

    @pytest.mark.parametrize("name", ["protocol", "mark", "sockopt", "INFO", "nope", "", 2])
    def test_what_cannot_be_requested_is_a_wrong_argument(self, name: Any) -> None:
        with pytest.raises(ValueError, match=f"extension {name!r} cannot be asked for; those that can are meminfo"):
            extension_bits(("info", name))


@golden.of_this_byte_order
class TestGolden:
    """Nested payloads of the kernel decode to what was set up, and encode to the same bytes."""

    ULP_OF_A_SUBFLOW = (
        ("name", "mptcp"),
        (
            "mptcp",
            (
                ("token_rem", 0), ("token_loc", 0x1B3103D4), ("flags", 0xC3), ("id_rem", 0), ("id_loc", 0),
                ("relwrite_seq", 2), ("map_seq", 0x41F4B3080171D0A9), ("map_sfseq", 1), ("ssn_offset", 0x6E9C769E),
                ("map_datalen", 0),
            ),
        ),
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "fields", "value"),
        [
            ("md5sig", golden.MD5SIG, (Md5Signature(AF_INET, 32, b"\x7f\0\0\2", b"key"),)),
            ("ulp_info", golden.ULP_INFO, ULP_OF_A_SUBFLOW),
        ],
        ids=["md5sig", "ulp_info"],
    )
    def test_a_payload(self, name: str, fields: golden.Fields, value: Any) -> None:
        payload = golden.joined(fields)
        assert decode_attribute(NUMBERS[name], payload) == (name, value)
        assert encode_value(name, value) == (NUMBERS[name], payload)
