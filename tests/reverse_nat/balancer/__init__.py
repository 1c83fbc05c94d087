"""A small socket load balancer: the datapath that socklb serves, so that the tests can stand on a real one.

eBPF programs, assembled by hand, on a cgroup of their own: whoever connects from there to a service is sent to its
backend, and recorded in maps of Cilium's layout, pinned under Cilium's names.

with Balancer() as balancer:            # or the fixture `balancer`
    balancer.set_service("10.96.0.10", 80, "tcp", "127.0.0.2", 9000)
    with balancer.clients():
        client.connect(("10.96.0.10", 80))
    balancer.records(), balancer.directory

`clients` makes clients of every kind, and the servers that they get to (or the fixture `clients`).
"""

from __future__ import annotations

from .balancer import Balancer, Record

__all__ = ["Balancer", "Record"]
