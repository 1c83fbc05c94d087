"""The watch protocol: which change a line is, and what is wrong with a bad one."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from socklb import Backend, BackendState, BackendTable
from socklb.sources.protocol import Delete, Nothing, Replace, Upsert, parse_line, shortened
from socklb.termination.table import Instance

from .. import strategies
from ..sockets import in_child
from ..strategies import damaged

A, B = Backend.parse("10.0.0.1:80/TCP"), Backend.parse("[2001:db8::1]:53/UDP")

backends = st.builds(
    Backend,
    strategies.addresses.filter(
        lambda a: a.packed.strip(b"\0") not in (b"", b"\xff\xff") and not (a.version == 6 and a.is_link_local)
    ),
    strategies.ports.filter(bool),
    st.sampled_from(("tcp", "udp")),
)
services = st.text(max_size=8)
instances = st.builds(Instance, backends, services, st.sampled_from(BackendState), st.booleans())
changes: st.SearchStrategy[Any] = (
    st.builds(Upsert, instances)
    | st.builds(Delete, backends, st.none() | services)
    | st.builds(Replace, st.lists(instances, max_size=4).map(tuple), st.just(()))
)


def line_of(change: Any) -> bytes:
    """A change as the protocol writes it."""
    if isinstance(change, Delete):
        service = {} if change.service is None else {"service": change.service}
        written: dict[str, Any] = {"op": "delete", "backend": str(change.backend), **service}
    elif isinstance(change, Upsert):
        written = {"op": "upsert", **_entry(change.instance)}
    elif isinstance(change, Nothing):
        written = {"op": "upsert", "backend": change.left_out[0]}
    else:
        left_out = [{"backend": text} for text in change.left_out]
        written = {"op": "replace", "backends": [*map(_entry, change.instances), *left_out]}
    return json.dumps(written).encode()


def _entry(instance: Instance) -> dict[str, Any]:
    backend, service, state, unhealthy = instance
    return {"backend": str(backend), "service": service, "state": BackendState(state).value, "unhealthy": unhealthy}


def refused(line: bytes | str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it says is looked at by whoever asks
        parse_line(line if isinstance(line, bytes) else line.encode())
    return str(caught.value)


class TestLaws:
    @given(changes)
    def test_what_was_written_is_read(self, change: Any) -> None:
        assert parse_line(line_of(change)) == change
        assert type(parse_line(line_of(change))) is type(change)

    @given(changes, st.text(" \t\r\n", max_size=3), st.text(" \t\r\n", max_size=3))
    def test_white_space_around_it_does_not_count(self, change: Any, before: str, after: str) -> None:
        assert parse_line(before.encode() + line_of(change) + after.encode()) == change

    @given(st.binary(max_size=60) | damaged(changes.map(line_of)))
    @example(b'{"op": "replace", "backends": ' + b"[" * 100_000)
    @example(b"9" * 5000)
    @example(b'"\\ud800"')
    @example(b"\xef\xbb\xbf{}")
    @example(b'{"op": NaN}')
    def test_any_bytes_are_a_change_or_a_value_error(self, line: bytes) -> None:
        try:
            change = parse_line(line)
        except ValueError as error:
            assert type(error) is ValueError, "an error of the parser's parts"  # noqa: PT017 - both ways are fine
            assert str(error)  # noqa: PT017
            return
        assert parse_line(line_of(change)) == change
        change.apply(BackendTable())

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(("op", "backend", "backends", "service", "state", "unhealthy")),
                    inner | st.sampled_from(("upsert", "delete", "replace", "10.0.0.1:80/TCP")),
                    max_size=5,
                )
            ),
            max_leaves=10,
        )
    )
    def test_any_json_is_a_change_or_a_value_error(self, value: object) -> None:
        self.test_any_bytes_are_a_change_or_a_value_error.hypothesis.inner_test(self, json.dumps(value).encode())  # type: ignore[attr-defined]


class TestLines:
    """The protocol as it is documented."""

    @pytest.mark.parametrize(
        ("line", "change"),
        [
            (
                '{"op":"upsert","backend":"10.0.0.1:80/TCP","service":"default/web","state":"active","unhealthy":false}',
                Upsert(Instance(A, "default/web", BackendState.ACTIVE, False)),
            ),
            ('{"op":"upsert","backend":"10.0.0.1:80/TCP"}', Upsert(Instance(A, "", BackendState.ACTIVE, False))),
            (
                '{"op":"upsert","backend":"10.0.0.1:80/TCP","state":"quarantined","unhealthy":true}',
                Upsert(Instance(A, "", BackendState.QUARANTINED, True)),
            ),
            ('{"op":"delete","backend":"[2001:db8::1]:53/UDP","service":"dns"}', Delete(B, "dns")),
            ('{"op":"delete","backend":"[2001:db8::1]:53/UDP","service":""}', Delete(B, "")),
            ('{"op":"delete","backend":"[2001:db8::1]:53/UDP"}', Delete(B, None)),
            ('{"op":"replace","backends":[]}', Replace(())),
            (
                '{"op":"replace","backends":[{"backend":"10.0.0.1:80/TCP"},{"backend":"[2001:db8::1]:53/UDP","service":"s"}]}',
                Replace((Instance(A), Instance(B, "s"))),
            ),
        ],
    )
    def test_each(self, line: str, change: Any) -> None:
        assert parse_line(line.encode()) == change


class TestWhatIsWrong:
    """A bad line is reported with the reason."""

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("", "not JSON: Expecting value at column 1"),
            ('{"op": "upsert"', "not JSON: Expecting ',' delimiter at column 16"),
            ("[]", "a change is an object, not an array"),
            ("7", "a change is an object, not 7"),
            ("{}", "no 'op'"),
            ('{"op": 7}', "op is a string, not 7"),
            ('{"op": "add"}', "op is upsert, delete or replace, not 'add'"),
            ('{"op": "upsert"}', "no 'backend'"),
            ('{"op": "upsert", "backend": {}}', "backend is a string, not an object"),
            ('{"op": "delete"}', "no 'backend'"),
            ('{"op": "upsert", "backend": "10.0.0.1:80"}', "backend '10.0.0.1:80' names no protocol"),
            ('{"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": 1}', "service is a string, not 1"),
            (
                '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "state": "up"}',
                "the state of a backend is one of active, ",
            ),
            ('{"op": "upsert", "backend": "10.0.0.1:80/TCP", "unhealthy": 0}', "unhealthy is true or false, not 0"),
            (
                '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "unhealthy": "no"}',
                'unhealthy is true or false, not "no"',
            ),
            ('{"op": "replace"}', "no 'backends'"),
            ('{"op": "replace", "backends": null}', "backends is an array, not null"),
            ('{"op": "replace", "backends": {}}', "backends is an array, not an object"),
            ('{"op": "replace", "backends": [[]]}', "backend number 1: a backend is an object, not an array"),
            (
                '{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP"}, {"backend": "x"}]}',
                "backend number 2: backend 'x' names no protocol",
            ),
        ],
    )
    def test_the_reason(self, line: str, reason: str) -> None:
        assert refused(line).startswith(reason)

    @pytest.mark.parametrize(
        ("line", "known"),
        [
            (
                '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "X": true}',
                "a backend has backend, service, state, unhealthy, op",
            ),
            ('{"op": "delete", "backend": "10.0.0.1:80/TCP", "X": 1}', "a delete has op, backend, service"),
            ('{"op": "replace", "backends": [], "X": 1}', "a replace has op, backends"),
            (
                '{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "X": 1}]}',
                "a backend has backend, service, state, unhealthy",
            ),
        ],
    )
    @pytest.mark.parametrize("key", ["unhealty", "Unhealthy", "", "\n"])
    def test_a_key_that_is_not_known(self, line: str, known: str, key: str) -> None:
        """A misspelt "unhealthy" must not count as healthy."""
        value = line.replace('"X"', json.dumps(key))
        assert refused(value).endswith(f"unknown key {key!r}; {known}")

    @pytest.mark.parametrize(
        ("op", "name"), [("upsert", "service"), ("upsert", "state"), ("upsert", "unhealthy"), ("delete", "service")]
    )
    def test_null_is_no_value(self, op: str, name: str) -> None:
        """A delete of the service null is not one of all services."""
        assert refused(f'{{"op": "{op}", "backend": "10.0.0.1:80/TCP", "{name}": null}}').endswith(", not null")

    @pytest.mark.parametrize(
        "line",
        [
            '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "unhealthy": true, "unhealthy": false}',
            '{"op": "delete", "op": "upsert", "backend": "10.0.0.1:80/TCP"}',
            '{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP"}], "backends": []}',
            '{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "backend": "10.0.0.2:80/TCP"}]}',
        ],
    )
    def test_a_key_that_comes_twice(self, line: str) -> None:
        """Nobody knows which one counts."""
        assert refused(line) == "a key comes twice"

    def test_an_op_within_a_replace(self) -> None:
        line = '{"op": "replace", "backends": [{"op": "upsert", "backend": "10.0.0.1:80/TCP"}]}'
        assert "unknown key 'op'" in refused(line)

    def test_no_utf_8(self) -> None:
        assert refused('{"op": "\u00fc'.encode() + b'\xff"}') == "not UTF-8 at column 10"

    def test_where_in_a_document_of_several_lines(self) -> None:
        """A file usually is one."""
        assert (
            refused('{"op": "replace",\n "backends": [\n  \u00fc]}') == "not JSON: Expecting value at line 3, column 3"
        )
        assert refused(b'{"op": "replace",\n "\xff"}') == "not UTF-8 at line 2, column 3"

    @pytest.mark.parametrize("opening", ["[", '{"":', '[{"]":['])
    def test_too_deep(self, opening: str) -> None:
        """Whatever the stack is: that of a thread may have room for less than Python allows."""

        def parse() -> str:
            found: list[str] = []
            usual = threading.stack_size(64 << 10)
            thread = threading.Thread(target=lambda: found.append(refused(opening * 100_000)))
            thread.start()
            threading.stack_size(usual)
            thread.join()
            return found[0]

        assert in_child(parse) == "nested too deeply"

    def test_brackets_in_a_string_are_none(self) -> None:
        assert refused('{"op": "' + "[" * 20 + '\\"[{"}').startswith("op is upsert, delete or replace, not '[[[")

    @pytest.mark.parametrize("value", [["x" * 1000], "x" * 1000, {"x" * 1000: 1}], ids=["array", "string", "object"])
    def test_what_could_be_long_is_not_quoted(self, value: object) -> None:
        assert len(refused(json.dumps({"op": "upsert", "backend": "10.0.0.1:80/TCP", "unhealthy": value}))) < 100


@pytest.mark.parametrize("text", ["[fe80::1]:80/TCP", "[FEBF:0:0:0:0:0:0:1]:80/TCP"])
class TestLinkLocal:
    """Without its link such a backend is another one on each link: it is left out, and the rest counts."""

    def test_of_a_replace(self, text: str) -> None:
        change = parse_line(
            json.dumps({"op": "replace", "backends": [{"backend": text}, {"backend": str(A)}]}).encode()
        )
        assert change == Replace((Instance(A),), (text,))

    @pytest.mark.parametrize("op", ["upsert", "delete"])
    def test_alone(self, text: str, op: str) -> None:
        change = parse_line(json.dumps({"op": op, "backend": text}).encode())
        change.apply(BackendTable())
        assert change == Nothing((text,))


def test_a_message_does_not_grow_with_its_input() -> None:
    message = shortened(f"unknown key {'x' * 10_000!r}")
    assert message.startswith("unknown key 'xxx")
    assert message.endswith("...")
    assert len(message) < 600
    assert shortened("short") == "short"
