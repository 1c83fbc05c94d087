"""`socklb demo` needs nothing but a kernel, and ends with 0 only if exactly the right clients died."""

from __future__ import annotations

import pytest

from .. import world
from ..sockets import Sockets, talk
from .runner import Preexec, drop_privilege, run

pytestmark = pytest.mark.kernel


def become(uid: int, namespaces: str = "10") -> Preexec:
    """For `preexec`: root, or an ordinary user without any capability, who may make so many user namespaces."""

    def enter() -> None:
        world.become(uid)
        with open("/proc/sys/user/max_user_namespaces", "w", encoding="ascii") as file:
            file.write(namespaces)  # of this user namespace, and none outside of it

    return enter


DESTROYS = """
world, SocketFilter = module(".cli.demo.play"), module(".filters").SocketFilter
destroy_sockets = world.destroy_sockets
world.destroy_sockets = lambda filters: destroy_sockets([{filters}])
"""
NOBODY = DESTROYS.format(filters="")
TOO_MANY = DESTROYS.format(filters="*filters, SocketFilter.parse('dst [fd00::1]:9000', 'udp')")
TOO_FEW = DESTROYS.format(
    filters="SocketFilter.parse(str(each), each.protocol, predicate=lambda s: s.protocol == 17 or s.family == 2 or "
    "s.dst.ipv4_mapped) for each in filters"
)
OLD_PYTHON_WITHOUT_CTYPES = """
import os
for name in ("unshare", "setns"):
    if hasattr(os, name):
        delattr(os, name)
sys.modules["ctypes"] = None
"""
NO_V6 = """
def refuse(address):
    raise OSError(97, "Address family not supported by protocol")
module(".cli.demo.world").add_loopback_address = refuse
"""

NO_NAT = """
def refuse(services):
    raise module(".errors").KernelError(95, "set NAT rules")
module(".cli.demo.services").set_services = refuse
"""

ANYBODY = pytest.mark.parametrize(
    "preexec", [None, become(1000), become(0, "0")], ids=["root", "user", "no user namespaces"]
)


class TestOneBackendDies:
    """Three backends, TCP and UDP, v4, v6 and mapped: 18 clients, of which the 6 of one backend die; and by services 4
    more, of which one dies, and one of UDP goes on with another backend.
    """

    @ANYBODY
    def test_exactly_those(self, network: None, preexec: Preexec) -> None:
        result, table = (run("demo", *json, preexec=preexec) for json in (["--json"], []))
        assert (result.code, result.err, table.code, table.err) == (0, "", 0, "")
        said = result.json
        clients = said["clients"]
        assert (len(clients), len({(row["client"], row["backend"]) for row in clients})) == (22, 22)
        assert (said["matched"], said["destroyed"], said["rerouted"], said["wrong"]) == (8, 7, 1, 0)
        changed = {(row["client"], row["backend"]): row["after"] for row in clients if row["after"] != row["before"]}
        assert changed == {
            **{(f"tcp {form}", "green"): "ECONNABORTED, then EPIPE" for form in ("v4", "v6", "v4-mapped", "service")},
            **{(f"udp {form}", "green"): "ECONNABORTED, then EDESTADDRREQ" for form in ("v4", "v6", "v4-mapped")},
            ("udp service", "green"): "blue",
        }
        assert {(row["before"] == row["backend"], row["as_expected"]) for row in clients} == {(True, True)}
        lines = [line.split(None, 4) for line in table.out.splitlines() if line.startswith(("  tcp ", "  udp "))]
        assert [[f"{kind} {form}", *others] for kind, form, *others in lines] == [
            [row["client"], row["backend"], row["before"], row["after"]] for row in clients
        ]
        assert table.out.endswith(
            "8 matched: 7 destroyed, 1 rerouted, 0 gone, 0 skipped, 0 failed; 0 died or lived by mistake.\n"
        )

    def test_where_nothing_can_be_balanced_those_clients_are_left_out(self, network: None) -> None:
        said = run("demo", "--json", patch=NO_NAT).json
        assert (len(said["clients"]), said["destroyed"], said["rerouted"], said["wrong"]) == (18, 6, 0, 0)

    def test_without_ipv6_the_v4_clients_alone(self, network: None) -> None:
        said = run("demo", "--json", patch=NO_V6).json
        assert (len(said["clients"]), said["destroyed"], said["wrong"]) == (10, 3, 0)

    def test_no_socket_of_the_caller_is_touched(self, sockets: Sockets) -> None:
        client, server = sockets.tcp("127.0.0.2", 9000)
        assert run("demo").code == 0
        talk(client, server)


@pytest.mark.parametrize(
    ("patch", "wrong", "destroyed"),
    [(NOBODY, 2, 5), (TOO_MANY, 1, 8), (TOO_FEW, 1, 6)],
    ids=["nobody", "too many", "too few"],
)
def test_one_death_too_many_or_too_few_is_1_and_marked(network: None, patch: str, wrong: int, destroyed: int) -> None:
    result, table = run("demo", "--json", patch=patch), run("demo", patch=patch)
    assert (result.code, table.code) == (1, 1)
    assert (result.json["wrong"], result.json["destroyed"]) == (wrong, destroyed)
    assert sum(not row["as_expected"] for row in result.json["clients"]) == wrong
    assert table.out.count("WRONG") == wrong
    assert f"{wrong} died or lived by mistake" in table.out


class TestNoWorld:
    """Where there can be no namespace of one's own: 3, why, and how to go on."""

    @pytest.mark.parametrize(
        ("preexec", "patch", "text"),
        [
            (drop_privilege, "", "Operation not permitted"),
            (become(1000, "0"), "", "No space left on device"),
            (None, OLD_PYTHON_WITHOUT_CTYPES, "nor a working ctypes"),
        ],
        ids=["nobody", "namespaces forbidden", "no ctypes"],
    )
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
    def test_is_3(self, network: None, json: list[str], preexec: Preexec, patch: str, text: str) -> None:
        result = run("demo", *json, preexec=preexec, patch=patch)
        assert result.code == 3
        assert text in result.err
        assert ("run the demo with a newer Python" if patch else "as root, or allow user namespaces") in result.err
        assert result.out == "" if not json else f"socklb: {result.json['error']}\n" == result.err
