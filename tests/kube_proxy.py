"""Services with the rules that kube-proxy makes, by its own tools: nft(8), or iptables(8) of either kind.

Chains, marks and the choice among endpoints are those of Kubernetes 1.33 (pkg/proxy/nftables, pkg/proxy/iptables).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from socklb.wire.address import format_endpoint

from .nat_rules import Service

_POD_NETWORKS = {4: "10.244.0.0/16", 6: "fd00:244::/32"}


def _of_family(services: Iterable[Service], version: int) -> list[tuple[str, Service]]:
    return [(f"{n}", each) for n, each in enumerate(services) if each.endpoint.address.version == version]


def _run(command: Sequence[str], text: str) -> None:
    done = subprocess.run(command, input=text, stderr=subprocess.PIPE, encoding="ascii", check=False)
    if done.returncode:
        raise OSError(f"{command[0]} ended with {done.returncode}: {done.stderr}\n{text}")


# --------------------------------------------------------------------------------------------------------- nft

_NFT = """\
table {family} kube-proxy
delete table {family} kube-proxy
table {family} kube-proxy {{
  map service-ips {{
    type {type} . inet_proto . inet_service : verdict
{served}  }}
  map no-endpoint-services {{
    type {type} . inet_proto . inet_service : verdict
{rejected}  }}
  chain mark-for-masquerade {{
    meta mark set meta mark or 0x4000
  }}
  chain masquerading {{
    meta mark and 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }}
{chains}  chain services {{
    {family} daddr . meta l4proto . th dport vmap @service-ips
  }}
  chain reject-chain {{
    reject
  }}
  chain service-endpoints-check {{
    {family} daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
  chain filter-forward {{
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
  }}
  chain filter-output {{
    type filter hook output priority -110
    ct state new jump service-endpoints-check
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -100
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority 100
    jump masquerading
  }}
}}
"""


def _elements(elements: list[str]) -> str:
    return f"    elements = {{ {', '.join(elements)} }}\n" if elements else ""


def _with_nftables(services: Iterable[Service]) -> None:
    services = list(services)
    text = ""
    for version, family, type in ((4, "ip", "ipv4_addr"), (6, "ip6", "ipv6_addr")):
        served, rejected, chains = [], [], ""
        for name, (endpoint, backends, masquerade) in _of_family(services, version):
            key = f"{endpoint.address} . {endpoint.protocol} . {endpoint.port}"
            if not backends:
                rejected.append(f"{key} : goto reject-chain")
                continue
            served.append(f"{key} : goto service-{name}")
            marked = {"nobody": "", "all": "jump mark-for-masquerade"}
            marked["strangers"] = f"{family} saddr != {_POD_NETWORKS[version]} jump mark-for-masquerade"
            goto = ", ".join(f"{n} : goto endpoint-{name}-{n}" for n in range(len(backends)))
            for n, backend in enumerate(backends):
                chains += f"  chain endpoint-{name}-{n} {{\n"
                chains += f"    {family} saddr {backend.address} jump mark-for-masquerade\n"
                to = format_endpoint(backend.address, backend.port)
                chains += f"    meta l4proto {backend.protocol} dnat to {to}\n  }}\n"
            chains += f"  chain service-{name} {{\n    {marked[masquerade]}\n"
            chains += f"    numgen random mod {len(backends)} vmap {{ {goto} }}\n  }}\n"
        maps = {"served": _elements(served), "rejected": _elements(rejected)}
        text += _NFT.format(family=family, type=type, chains=chains, **maps)
    _run(["nft", "-f", "-"], text)


# ---------------------------------------------------------------------------------------------------- iptables

_FILTER = """\
*filter
:KUBE-SERVICES - [0:0]
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
{rules}COMMIT
"""
_NAT = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
{chains}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{rules}COMMIT
"""


def _with_iptables(kind: str, services: Iterable[Service]) -> None:
    services = list(services)
    for version, tool in ((4, "iptables"), (6, "ip6tables")):
        chains = rules = rejected = ""
        for name, (endpoint, backends, masquerade) in _of_family(services, version):
            here = f"-d {endpoint.address} -p {endpoint.protocol} -m {endpoint.protocol} --dport {endpoint.port}"
            if not backends:
                rejected += f"-A KUBE-SERVICES {here} -j REJECT\n"
                continue
            chains += f":KUBE-SVC-{name} - [0:0]\n"
            rules += f"-A KUBE-SERVICES {here} -j KUBE-SVC-{name}\n"
            if masquerade != "nobody":
                strangers = f"! -s {_POD_NETWORKS[version]} " if masquerade == "strangers" else ""
                rules += f"-A KUBE-SVC-{name} {strangers}{here} -j KUBE-MARK-MASQ\n"
            for n, backend in enumerate(backends):
                left = len(backends) - n
                chosen = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
                chains += f":KUBE-SEP-{name}-{n} - [0:0]\n"
                rules += f"-A KUBE-SVC-{name} {chosen}-j KUBE-SEP-{name}-{n}\n"
                rules += f"-A KUBE-SEP-{name}-{n} -s {backend.address} -j KUBE-MARK-MASQ\n"
                to = format_endpoint(backend.address, backend.port)
                rules += f"-A KUBE-SEP-{name}-{n} -p {backend.protocol} -j DNAT --to-destination {to}\n"
        _run([f"{tool}-{kind}-restore"], _FILTER.format(rules=rejected) + _NAT.format(chains=chains, rules=rules))


class Balancer(NamedTuple):
    """What sets its rules, the command that it needs, and what that must be able to do."""

    set_rules: Callable[[Iterable[Service]], None]
    command: tuple[str, ...]
    least: str = "*nat\nCOMMIT\n"

    def why_not(self) -> str:
        """Why it cannot be had here, "" if it can."""
        if shutil.which(self.command[0]) is None:
            return f"there is no {self.command[0]} here"
        try:
            _run(self.command, self.least)
        except OSError as error:
            return str(error)
        return ""


BALANCERS = {
    "nftables": Balancer(_with_nftables, ("nft", "-f", "-"), "table ip kube-proxy\n"),
    "iptables-nft": Balancer(partial(_with_iptables, "nft"), ("iptables-nft-restore",)),
    "iptables-legacy": Balancer(partial(_with_iptables, "legacy"), ("iptables-legacy-restore",)),
}
