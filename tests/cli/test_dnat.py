"""The demo's NAT, in a network namespace that belongs to the caller."""

from __future__ import annotations

import pytest

from socklb import Backend, NotPermitted, NotSupported
from socklb.cli.demo.dnat import NFPROTO, Nftables, Table, set_services

from ..nat import answering, ask
from ..sockets import Sockets, without_privilege

pytestmark = pytest.mark.kernel

SERVICE, A, B = (Backend(f"127.0.0.{number}", 80, "udp") for number in (9, 2, 3))


def test_new_clients_get_to_the_backend_that_a_service_has_last(sockets: Sockets) -> None:
    with answering({sockets.udp_bound(str(one.address), 80): str(one) for one in (A, B)}):
        for backend in (A, B):
            set_services({SERVICE: backend})
            assert ask(sockets.udp(str(SERVICE.address), 80)) == str(backend)


def test_of_a_batch_with_an_error_nothing_is_done(sockets: Sockets) -> None:
    set_services({SERVICE: A})
    table = Table(NFPROTO[4], "socklb-demo")
    with Nftables() as nftables, pytest.raises(NotSupported, match=r"take the service away.*CONFIG_NF_TABLES"):
        nftables.commit([*table.made_anew(), table.rule("nowhere")], "take the service away")
    with answering({sockets.udp_bound(str(A.address), 80): "A"}):
        assert ask(sockets.udp(str(SERVICE.address), 80)) == "A"


def test_without_privilege_it_is_not_permitted(network: None) -> None:
    def refused() -> str:
        with pytest.raises(NotPermitted) as caught:
            set_services({SERVICE: A})
        return str(caught.value)

    assert "CAP_NET_ADMIN" in without_privilege(refused)
