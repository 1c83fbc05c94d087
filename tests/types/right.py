"""Uses of the public names that are right: no checker may complain."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Optional, Union

from socklb import (
    Backend,
    BackendState,
    BackendTable,
    Condition,
    Counts,
    FilterSyntaxError,
    Flow,
    InetSocket,
    Instance,
    NetworkNamespace,
    Outcome,
    Pass,
    Report,
    RevNatMaps,
    SocketFilter,
    SocklbError,
    Support,
    TcpState,
    TerminationLoop,
    UnsearchedNamespace,
    destroy_sockets,
    discover_namespaces,
    dport,
    dst,
    find_flows,
    find_sockets,
    probe,
    state_mask,
    terminate_connections,
)


def conditions() -> Condition:
    return (dst("10.0.0.0/8") | ~dport(80)) & dport(1, 1024)


def sockets(where: Condition) -> Iterator[str]:
    filter = SocketFilter("tcp", where, states=["established", TcpState.SYN_SENT], predicate=lambda s: s.sport > 1024)
    for socket in find_sockets(filter, extensions=["info"]):
        found: InetSocket = socket
        address: Union[IPv4Address, IPv6Address] = found.src
        yield f"{address}:{found.sport} {found.cookie}"


def verdicts(report: Report) -> dict[str, int]:
    counts: Counts = report.counts
    for outcome in report.outcomes:
        one: Outcome = outcome
        namespace: NetworkNamespace = one.namespace
        print(one.verdict.upper(), one.reason, namespace.name, one.socket and one.socket.cookie, one.client.sport)
    missing: list[UnsearchedNamespace] = report.unsearched
    return {"destroyed": counts.destroyed, "unsearched": len(missing), "rerouted": report.rerouted}


def everything(backend: Backend, maps: RevNatMaps) -> int:
    port: int = backend.port
    destroy_sockets(SocketFilter.to_backend(backend.address, port, backend.protocol), namespaces="all", limit=3)
    report = terminate_connections([backend], namespaces=discover_namespaces(), rev_nat=maps, conntrack=False)
    flows: list[Flow] = list(find_flows([backend]))
    support: dict[tuple[str, int], Support] = probe()
    return report.destroyed + len(flows) + len(support) + state_mask(TcpState.LISTEN)


def follow(table: BackendTable) -> None:
    def on_pass(done: Pass) -> None:
        seconds: float = done.seconds
        print([str(backend) for backend in done.backends], seconds)

    table.upsert(Backend("10.0.0.1", 80, "tcp"), state=BackendState.ACTIVE)
    table.replace([Instance(Backend.parse("10.0.0.1:80/TCP"))])
    TerminationLoop(table, conntrack="auto", on_pass=on_pass).run()


def errors() -> Optional[str]:
    try:
        SocketFilter.parse("dst nowhere", "udp")
    except FilterSyntaxError as error:
        return error.word
    except SocklbError as error:
        return str(error.report)
    return None
