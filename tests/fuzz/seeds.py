"""The corpus: inputs that are worth starting from. `python -m tests.fuzz.seeds` writes it anew.

Replies of a real kernel, texts of each form of the language, programs of each kind of filter, lines of the watch
protocol; where an input only chooses, any bytes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from .. import package_under_test

package_under_test.bind()

from socklb import SocketFilter  # noqa: E402 - only now is it the package under test
from socklb.wire.netlink import encode_attributes, encode_message  # noqa: E402
from socklb.wire.request import SOCK_DIAG_BY_FAMILY  # noqa: E402

from ..wire import golden  # noqa: E402
from . import targets  # noqa: E402
from .targets import replies  # noqa: E402

_TEXTS = {
    "empty": "",
    "address": "dst 10.0.0.5",
    "endpoint": "src neq 10.0.0.1:80",
    "prefix": "dst 10/8 and not src 10.1/16",
    "v6": "dst [2001:db8::1]:53 or dst [2001:db8::/32]:http or dst fd00::1",
    "mapped": "dst ::ffff:10.0.0.1",
    "any": "dst *:80 and src *",
    "ports": "dport >= 1024 sport < 80 and dport != :443",
    "traits": "dev eth0.100 and fwmark = 0x13/0xff and cgroup != system.slice/ssh.service",
    "numbers": "dev 2 or cgroup 77 or fwmark 1",
    "autobound": "not autobound && !(dport 80)",
    "nested": "( dport = :80 or ( dport = :443 and not ( src 10.1.0.0/16 | dev lo ) ) ) and dst 0/0",
    "many": " or ".join(f"dst 10.0.{n % 3}.{n}:80" for n in range(20)),
    "mixed": "dport 1 or sport 2 and dst 10.0.0.1",
    "unclosed": "( dport 80 and dst [::1",
    "zone": "dst fe80::1%eth0",
    "state": "dst 10.0.0.1 state established",
    "surrogate": "dev \udc80 and cgroup \u00e9",
    "nul": "dport \0",
}
_LINES = {
    "upsert": '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "default/web", "state": "active"}',
    "unhealthy": '{"op": "upsert", "backend": "[fd00::1]:53/UDP", "unhealthy": true}',
    "mapped": '{"op": "upsert", "backend": "[::ffff:10.0.0.1]:80/tcp", "state": "quarantined", "service": null}',
    "delete": '{"op": "delete", "backend": "10.0.0.1:80/TCP", "service": "default/web"}',
    "delete-all": '{"op": "delete", "backend": "10.0.0.1:80/TCP"}',
    "replace": '{"op": "replace", "backends": [{"backend": "10.0.0.1:80/TCP", "service": "a"}, '
    '{"backend": "10.0.0.2:80/TCP", "state": "maintenance", "unhealthy": false}]}',
    "replace-by-none": '{"op": "replace", "backends": []}',
    "escaped": '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "service": "\\ud800\\u00e9\\n"}',
    "unknown-key": '{"op": "upsert", "backend": "10.0.0.1:80/TCP", "unheathy": true}',
    "unknown-op": '{"op": "insert"}',
    "no-number": '{"op": NaN, "backend": -1e999}',
    "no-object": "[1, 2]",
    "deep": "[" * 500,
    "cut": '{"op": "upsert", "backend": "10.0.0.1:80',
    "no-backend": '{"op": "delete", "backend": "10.0.0.1:0/TCP"}',
    "zone": '{"op": "delete", "backend": "[fe80::1%eth0]:80/TCP"}',
}
_ROWS = ("ESTABLISHED_V4", "ESTABLISHED_V6", "ESTABLISHED_MAPPED", "CONNECTED_UDP", "LISTENING", "TIME_WAIT")
_ANSWERS = (
    *("DESTROYED", "NOT_FOUND", "NOT_FOUND_UNCAPPED", "REFUSED_WITH_TEXT"),
    *("DONE", "DONE_UNSUPPORTED", "DONE_WITH_TEXT"),
)
_CHOSEN = 24  # inputs of a target that only chooses


def seeds() -> dict[str, Mapping[str, bytes]]:
    """By target and name."""
    return {
        "bytecode": _programs(),
        "compiler": _any_bytes(100),
        "datagram": _datagrams(),
        "language": {name: text.encode("utf-8", "surrogateescape") for name, text in _TEXTS.items()},
        "replies": {**_undamaged(), **_any_bytes(80)},
        "watch": {**{name: line.encode() for name, line in _LINES.items()}, "no-utf-8": b'{"op": "\xff"}'},
    }


def _programs() -> dict[str, bytes]:
    programs = {}
    for name, text in _TEXTS.items():
        try:
            (program,) = SocketFilter.parse(text, "tcp").plan().programs
        except ValueError:  # no filter, or a name that is not resolved
            continue
        programs[name] = program
    return programs


def _datagrams() -> dict[str, bytes]:
    rows = {name.lower(): golden.joined(getattr(golden, name)) for name in _ROWS}
    rare = [(18, golden.joined(golden.MD5SIG)), (19, golden.joined(golden.ULP_INFO)), (12, bytes(128)), (999, b"new")]
    storages = (
        0x8014,
        bytes.fromhex("1400018008000200030000000500030001000000"),
    )  # SK_BPF_STORAGES, flags of nests in it
    rows["rare_attributes"] = rows["time_wait"] + encode_attributes([*rare, storages])
    single = {name: encode_message(SOCK_DIAG_BY_FAMILY, 2, 7, row) for name, row in rows.items()}
    single.update((name.lower(), golden.joined(getattr(golden, name))) for name in _ANSWERS)
    return {**single, "all": b"".join(single.values())}


def _undamaged() -> dict[str, bytes]:
    """Each call with each filter."""
    return {
        f"{('find', 'destroy')[call]}-{filter}": bytes([call, filter])
        for call in range(2)
        for filter in range(len(replies.FILTERS))
    }


def _any_bytes(most: int) -> dict[str, bytes]:
    random = Random(0)
    return {f"chosen-{n:02}": random.randbytes(random.randrange(8, most)) for n in range(_CHOSEN)}


def main() -> None:
    for target, inputs in seeds().items():
        folder = targets.CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
