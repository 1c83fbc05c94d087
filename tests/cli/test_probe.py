"""`socklb probe`: can this kernel, and this caller, destroy sockets? It touches none but its own."""

from __future__ import annotations

import pytest

from socklb import Support
from socklb.conntrack.support import conntrack_support

from ..sockets import Sockets, pending_error, talk
from .runner import Preexec, answers, drop_privilege, run
from .test_flows import ABSENT

pytestmark = pytest.mark.kernel

KINDS = ["tcp4", "tcp6", "udp4", "udp6"]
CAP = "CAP_NET_ADMIN in the user namespace that owns the network namespace"
NO_FAMILY = """
import errno
def refuse(self, family, *rest, usual=module(".engine.probe").ProbeSocket.__init__):
    if family in {families}:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    usual(self, family, *rest)
module(".engine.probe").ProbeSocket.__init__ = refuse
"""
NO_V6, NO_V4, NO_IP = (NO_FAMILY.format(families=families) for families in ((10,), (2,), (2, 10)))
NO_UDP_DIAG = """
diag = module(".kernel.diag").DiagSocket
dump = diag.dump
def without_udp(self, type, request, doing, **options):
    if "udp" in doing:
        raise module(".errors").NotSupported(2, "no udp_diag")
    return dump(self, type, request, doing, **options)
diag.dump = without_udp
"""


@pytest.mark.parametrize(
    ("code", "preexec", "patch", "statuses", "missing"),
    [
        (0, None, "", ["supported"] * 4, []),
        (4, drop_privilege, "", ["not_permitted"] * 4, ["CAP_NET_ADMIN"]),
        (3, None, answers(95), ["no_destroy"] * 4, ["CONFIG_INET_DIAG_DESTROY"]),
        (3, None, NO_UDP_DIAG, ["supported", "supported", "no_diag", "no_diag"], ["udp_diag"]),
        (0, None, NO_V6, ["supported", "no_family"] * 2, []),
        (0, None, NO_V4, ["no_family", "supported"] * 2, []),
        (4, drop_privilege, NO_V6, ["not_permitted", "no_family"] * 2, ["CAP_NET_ADMIN"]),
        (3, None, NO_V6 + answers(95), ["no_destroy", "no_family"] * 2, ["CONFIG_INET_DIAG_DESTROY"]),
        (3, None, NO_IP, ["no_family"] * 4, ["CONFIG_INET", "IPv6"]),
    ],
    ids=["all well", "no privilege", "no destroy", "no udp_diag", "no IPv6", "no IPv4", "no IPv6, no privilege",
         "no IPv6, no destroy", "no IP at all"],
)  # fmt: skip
def test_answers(
    network: None, code: int, preexec: Preexec, patch: str, statuses: list[str], missing: list[str]
) -> None:
    """3 if the kernel lacks something, else 4 if not permitted, else 0; a family that is not there lacks nothing,
    unless there is none at all.
    """
    result = run("probe", "--json", preexec=preexec, patch=patch)
    assert (result.code, result.err) == (code, "")
    said = result.json
    conntrack = conntrack_support()
    if preexec and conntrack.status == "supported":
        conntrack = Support("not_permitted", CAP)
    assert said.pop("conntrack") == conntrack._asdict()
    error = said.pop("error", "")
    assert [(kind, entry["status"]) for kind, entry in said.items()] == list(zip(KINDS, statuses))
    for entry in said.values():
        assert set(entry) == {"status", "missing"}
        assert (entry["missing"] == "") is (entry["status"] == "supported")
        is_named = entry["status"] not in ("supported", "no_family") or {*statuses} == {"no_family"}
        assert bool(error and entry["missing"] and entry["missing"] in error) is is_named
    assert bool(error) is bool(missing)
    assert all(name in error for name in missing)
    table = run("probe", preexec=preexec, patch=patch)
    assert (table.code, table.err) == (code, "")
    *rows, last = (line.split(None, 2) for line in table.out.splitlines())
    assert last == ["conntrack", *filter(None, conntrack)]
    assert [row[:2] for row in rows] == [list(row) for row in zip(KINDS, statuses)]
    assert ["".join(row[2:]) for row in rows] == [entry["missing"] for entry in said.values()]


def test_that_conntrack_is_absent_is_no_failure(network: None) -> None:
    result = run("probe", "--json", patch=ABSENT)
    missing = "CONFIG_NF_CT_NETLINK (or: modprobe nf_conntrack_netlink)"
    assert (result.code, result.json["conntrack"]) == (0, {"status": "absent", "missing": missing})
    assert "error" not in result.json


@pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
def test_no_other_socket_is_touched(sockets: Sockets, preexec: Preexec) -> None:
    pairs = [make(address, 9000) for make in (sockets.tcp, sockets.udp_pair) for address in ("127.0.0.2", "::1")]
    run("probe", preexec=preexec)
    for client, server in pairs:
        assert pending_error(client) == pending_error(server) == ""
        talk(client, server)


@pytest.mark.parametrize("words", [("probe",), ("destroy", "dst 10.0.0.1"), ("list",)], ids=" ".join)
def test_a_python_that_was_built_without_netlink(words: tuple[str, ...]) -> None:
    """As where a C library's headers are there and the kernel's are not."""
    code, out, err = run(*words, patch="import _socket; del _socket.AF_NETLINK")
    assert (code, "this Python has no AF_NETLINK" in out + err) == (3, True)
