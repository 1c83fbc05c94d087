"""`socklb probe`: can this kernel, and this caller, destroy sockets? It touches none but its own."""

from __future__ import annotations

import pytest

from ..sockets import Sockets, pending_error, talk
from .runner import Preexec, drop_privilege, run

pytestmark = pytest.mark.kernel

KINDS = ["tcp4", "tcp6", "udp4", "udp6"]
NO_V6 = """
import errno, socket
real = socket.socket
def without_v6(family=-1, *rest, **options):
    if family == socket.AF_INET6:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
    return real(family, *rest, **options)
socket.socket = without_v6
"""
NO_UDP_DIAG = """
diag = module(".kernel.diag").DiagSocket
dump = diag.dump
def without_udp(self, type, request, doing, **options):
    if "udp" in doing:
        raise module(".errors").NotSupported(2, "no udp_diag")
    return dump(self, type, request, doing, **options)
diag.dump = without_udp
"""
NO_DESTROY = "module('.kernel.diag').DiagSocket.destroy = lambda self, requests, doing: [95] * len(requests)"


@pytest.mark.parametrize(
    ("code", "preexec", "patch", "statuses", "missing"),
    [
        (0, None, "", ["supported"] * 4, ""),
        (4, drop_privilege, "", ["not_permitted"] * 4, "CAP_NET_ADMIN"),
        (3, None, NO_DESTROY, ["no_destroy"] * 4, "CONFIG_INET_DIAG_DESTROY"),
        (3, None, NO_UDP_DIAG, ["supported", "supported", "no_diag", "no_diag"], "udp_diag"),
        (3, drop_privilege, NO_V6, ["not_permitted", "no_family", "not_permitted", "no_family"], "IPv6"),
    ],
    ids=["all well", "no privilege", "no destroy", "no udp_diag", "no IPv6"],
)
class TestAnswers:
    """3 if anything is no_*, else 4 if not_permitted, else 0; each kind with its status and what it lacks."""

    def test_as_json(
        self, network: None, code: int, preexec: Preexec, patch: str, statuses: list[str], missing: str
    ) -> None:
        result = run("probe", "--json", preexec=preexec, patch=patch)
        assert (result.code, result.err) == (code, "")
        said = result.json
        error = said.pop("error", "")
        assert [(kind, entry["status"]) for kind, entry in said.items()] == list(zip(KINDS, statuses))
        for entry in said.values():
            assert set(entry) == {"status", "missing"}
            assert (entry["missing"] == "") is (entry["status"] == "supported")
            assert entry["missing"] in error
        assert missing in error
        assert bool(error) is bool(code)

    def test_as_a_table(
        self, network: None, code: int, preexec: Preexec, patch: str, statuses: list[str], missing: str
    ) -> None:
        result = run("probe", preexec=preexec, patch=patch)
        assert (result.code, result.err) == (code, "")
        assert [tuple(line.split()[:2]) for line in result.out.splitlines()] == list(zip(KINDS, statuses))
        assert missing in result.out


@pytest.mark.parametrize("preexec", [None, drop_privilege], ids=["privileged", "unprivileged"])
def test_no_other_socket_is_touched(sockets: Sockets, preexec: Preexec) -> None:
    pairs = [make(address, 9000) for make in (sockets.tcp, sockets.udp_pair) for address in ("127.0.0.2", "::1")]
    run("probe", preexec=preexec)
    for client, server in pairs:
        assert pending_error(client) == pending_error(server) == ""
        talk(client, server)
