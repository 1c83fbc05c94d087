"""Uses of the public names that are wrong: each checker has to complain of each line that ends with "wrong"."""

from __future__ import annotations

import socklb
from socklb import Backend, Outcome, SocketFilter, destroy_sockets, dst, find_flows, terminate_connections
from socklb import no_such_name  # wrong

socklb.destroy_socket  # wrong
SocketFilter("tcp", "dst 10.0.0.1")  # wrong
SocketFilter("tcp", state=["established"])  # wrong
dst(80)  # wrong
destroy_sockets(SocketFilter("tcp"), dryrun=True)  # wrong
destroy_sockets(SocketFilter("tcp"), limit="3")  # wrong
terminate_connections(["10.0.0.1:80/TCP"])  # wrong
terminate_connections([Backend("10.0.0.1", "80", "tcp")])  # wrong
find_flows([Backend.parse("10.0.0.1:80/TCP")]).flows  # wrong


def cookie(outcome: Outcome) -> int:
    return outcome.socket.cookie  # wrong: there may be none
