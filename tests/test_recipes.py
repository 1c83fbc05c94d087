"""docs/recipes.md: each recipe is carried out as it is written, on sockets some of which it means, and others not."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGUSR1
from socket import SHUT_WR, socket
from xml.etree import ElementTree

import pytest

from socklb import Backend

from . import nat_rules, rtnetlink
from .cli.agent import Agent, replace, watching
from .cli.runner import but_for_the_world
from .nat import Node, answering, ask
from .project import ROOT, document, only_in_checkout
from .sockets import Sockets, add_v6_address, eventually, pending_error, talk

pytestmark = only_in_checkout

EXAMPLES = ROOT / "docs" / "examples"
_TITLES = r"^## (.*)$"


class Recipe:
    """A section of the document."""

    def __init__(self, title: str, directory: Path) -> None:
        self._text = document("recipes.md").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert self._text
        self._directory = directory
        (directory / "socklb").write_text(f'#!/bin/sh\nexec {sys.executable} -m socklb "$@"\n', encoding="utf-8")
        (directory / "socklb").chmod(0o755)
        self.commands = [(command, expected) for block in self.blocks("console") for command, expected in _told(block)]

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self._text, re.MULTILINE | re.DOTALL)

    def next(self) -> str:
        """Carry out the command that comes next, and see that it prints what it is said to; what it prints."""
        command, expected = self.commands.pop(0)
        printed = self.shell(command)
        assert not expected or _but_for_ports(printed) == _but_for_ports(expected)
        return printed

    def shell(self, command: str, **variables: str) -> str:
        path = f"{self._directory}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables},
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert (done.returncode, but_for_the_world(done.stderr)) == (0, ""), command
        return done.stdout


def _told(block: str) -> Iterator[tuple[str, str]]:
    """Each command of a block, and what is printed below it."""
    for part in re.split(r"^[#$] ", block, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command, printed


def _but_for_ports(text: str) -> str:
    return re.sub(r":[3-6]\d{4}\b", ":PORT", text)


def table(agent: Agent) -> str:
    agent.process.send_signal(SIGUSR1)
    return agent.err


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Recipe]:
    return lambda title: Recipe(title, tmp_path)


@pytest.fixture
def at(sockets: Sockets) -> Callable[..., None]:
    """The network of the test has these addresses."""

    def add(*addresses: str) -> None:
        for address in addresses:
            if ":" in address:
                add_v6_address(address)
            else:
                rtnetlink.add_address("lo", f"{address}/32")

    return add


At = Callable[..., None]
Recipes = Callable[[str], Recipe]


def test_each_recipe_has_a_test() -> None:
    titles = re.findall(_TITLES, document("recipes.md"), re.MULTILINE)
    assert {*re.findall(r'recipe\("(.+?)"\)', Path(__file__).read_text(encoding="utf-8"))} == {*titles}


def test_nothing_is_destroyed_without_a_dry_run_before(tmp_path: Path) -> None:
    for title in re.findall(_TITLES, document("recipes.md"), re.MULTILINE):
        looked_at = []
        for command, _ in Recipe(title, tmp_path).commands:
            words = shlex.split(re.sub(r" --limit \d+", "", command))
            if "--dry-run" in words:
                words.remove("--dry-run")
                looked_at.append(words)
            assert words[:2] not in (["socklb", "destroy"], ["socklb", "terminate"]) or words in looked_at


@pytest.mark.kernel
class TestRecipes:
    def test_a_database_fails_over(self, sockets: Sockets, at: At, recipe: Recipes) -> None:
        steps = recipe("A database fails over")
        at("10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.1.7")
        client, _ = sockets.tcp("10.0.0.5", 5432, source="10.0.1.7")
        other = sockets.tcp("10.0.0.7", 5432, source="10.0.1.7")
        steps.next()
        assert pending_error(client) == ""
        steps.next()
        assert pending_error(client) == "ECONNABORTED"
        steps.next()

        demoted, _ = sockets.tcp("10.0.0.5", 5432, source="10.0.1.7")
        replica = sockets.tcp("10.0.0.5", 5432, source="10.0.0.6")
        other_primary = sockets.tcp("10.0.0.7", 5433, source="10.0.1.7")
        talk(*other)
        steps.next()
        talk(*other)
        steps.next()
        assert pending_error(demoted) == "ECONNRESET"
        talk(*replica)
        talk(*other_primary)

        followed = Path("/run/socklb/backends.json")
        followed.parent.mkdir()
        new = followed.with_name("new")
        followed.write_text(json.dumps(replace("10.0.0.5:5433/TCP")), encoding="utf-8")
        client, _ = sockets.tcp("10.0.0.5", 5433, source="10.0.1.7")
        ((command, _),) = steps.commands
        *_, name, source = shlex.split(command)
        assert (name, source) == ("--source", str(followed))
        with watching(source=source) as agent:
            eventually(lambda: "10.0.0.5:5433/TCP alive" in table(agent), "it has read the file")
            new.write_text(json.dumps(replace("10.0.0.7:5433/TCP")), encoding="utf-8")
            new.rename(followed)
            eventually(lambda: pending_error(client) == "ECONNABORTED", "the client is cut")
            agent.stop()
        talk(*other_primary)

    def test_a_virtual_address_moves(self, sockets: Sockets, at: At, recipe: Recipes) -> None:
        steps = recipe("A virtual address moves")
        at("192.0.2.10", "192.0.2.11", "198.51.100.1")
        moves = sockets.tcp("192.0.2.10", 80, source="198.51.100.1")
        stays = sockets.tcp("192.0.2.11", 80, source="198.51.100.1")
        steps.next()
        talk(*moves)
        steps.next()
        assert tuple(map(pending_error, moves)) == ("ECONNRESET", "ECONNABORTED")
        assert re.findall(r"^tcp +(\S+)", steps.next(), re.MULTILINE) == ["LISTEN"]
        talk(*stays)

    @pytest.mark.parametrize("line", ["ExecStop=(.*)", '    notify_backup "(.*)"', '    notify_fault "(.*)"'])
    def test_keepalived(self, sockets: Sockets, at: At, recipe: Recipes, line: str) -> None:
        steps = recipe("A virtual address moves")
        at("192.0.2.10", "192.0.2.11", "198.51.100.1", "2001:db8::1:10", "2001:db8:1::1")
        move = [
            sockets.tcp("192.0.2.10", 80, source="198.51.100.1"),
            sockets.tcp("2001:db8::1:10", 80, source="2001:db8:1::1"),
        ]
        stays = sockets.tcp("192.0.2.11", 80, source="198.51.100.1")
        (script,) = re.findall(f"^{line}$", "".join(steps.blocks("ini") + steps.blocks("conf")), re.MULTILINE)
        steps.shell(script.replace("/usr/local/sbin", str(EXAMPLES)))
        assert [tuple(map(pending_error, both)) for both in move] == [("ECONNRESET", "ECONNABORTED")] * 2
        talk(*stays)

    def test_pacemaker(self, sockets: Sockets, at: At, recipe: Recipes, tmp_path: Path) -> None:
        """As the cluster calls the agent: a stop of what does not run does nothing, and no stop fails."""
        steps = recipe("A virtual address moves")
        at("192.0.2.10", "198.51.100.1")
        moves = sockets.tcp("192.0.2.10", 80, source="198.51.100.1")
        *_, create, _ = [command for command, _ in steps.commands]
        assert "ocf:socklb:vip_clients " in create

        def agent(action: str) -> int:
            ip = create.partition(" ip=")[2].split()[0]
            variables = {
                "OCF_RESKEY_ip": ip,
                "OCF_RESOURCE_INSTANCE": "vip-clients",
                "HA_RSCTMP": str(tmp_path / "tmp"),
            }
            answer = steps.shell(f"{EXAMPLES}/vip_clients {action} >/dev/null 2>&1; echo $?", **variables)
            return int(answer)

        assert [agent(action) for action in ("validate-all", "monitor", "stop")] == [0, 7, 0]
        talk(*moves)
        assert [agent(action) for action in ("start", "start", "monitor")] == [0, 0, 0]
        talk(*moves)
        assert [agent(action) for action in ("stop", "monitor", "promote")] == [0, 7, 3]
        assert tuple(map(pending_error, moves)) == ("ECONNRESET", "ECONNABORTED")
        assert ElementTree.fromstring(steps.shell(f"{EXAMPLES}/vip_clients meta-data")).tag == "resource-agent"

    def test_a_tunnel_drops(self, sockets: Sockets, at: At, recipe: Recipes) -> None:
        steps = recipe("A tunnel drops")
        at("10.20.0.5", "10.30.0.5", "10.8.0.2", "10.0.1.7")
        behind, _ = sockets.tcp("10.20.0.5", 80, source="10.0.1.7")
        from_it, _ = sockets.tcp("10.30.0.5", 80, source="10.8.0.2")
        stays = sockets.tcp("10.30.0.5", 80, source="10.0.1.7")
        steps.next()
        assert [pending_error(client) for client in (behind, from_it)] == ["", ""]
        steps.next()
        assert [pending_error(client) for client in (behind, from_it)] == ["ECONNABORTED"] * 2
        assert steps.next().count("\n") == 1
        again, _ = sockets.tcp("10.20.0.5", 80, source="10.0.1.7")
        ((pre_down),) = re.findall(r"^PreDown = (.*)$", "".join(steps.blocks("ini")), re.MULTILINE)
        steps.shell(pre_down)
        assert pending_error(again) == "ECONNABORTED"
        talk(*stays)

    def test_a_nat_gateway_is_replaced(self, sockets: Sockets, at: At, recipe: Recipes) -> None:
        steps = recipe("A NAT gateway is replaced")
        at("203.0.113.7", "10.1.0.5", "10.0.1.7", "2001:db8::7")
        outside = [
            sockets.tcp("203.0.113.7", 443, source="10.0.1.7")[0],
            sockets.tcp("::ffff:203.0.113.7", 443, source="::ffff:10.0.1.7")[0],
            sockets.udp("203.0.113.7", 53),
        ]
        stay = [
            sockets.tcp("10.1.0.5", 443, source="10.0.1.7"),
            sockets.tcp("127.0.0.1", 443),
            sockets.tcp("2001:db8::7", 443),
            sockets.udp_pair("10.1.0.5", 53),
        ]
        steps.next()
        assert {pending_error(client) for client in outside} == {""}
        steps.next()
        assert [pending_error(client) for client in outside] == ["ECONNABORTED"] * 3
        assert "203.0.113.7" not in re.sub(r".* LISTEN .*", "", steps.next())
        for both in stay:
            talk(*both)

    def test_dns_after_coredns_restarts(self, node: Node, recipe: Recipes) -> None:
        """A is the pod that was, B the one that is there now; one client asks the service, one the pod."""
        steps = recipe("DNS after CoreDNS restarts")
        service, old, new = (f"{address}:53/UDP" for address in ("10.96.0.10", node.a.v4, node.b.v4))
        servers = {server: pod.name for pod in (node.a, node.b) for server in pod.servers(53)}
        with answering(servers):
            for backend in (old, new):
                nat_rules.set_rules([nat_rules.Service(Backend.parse(service), (Backend.parse(backend),))])
                if backend == old:
                    of_service = node.client.connect("udp", "10.96.0.10", 53)
                    of_pod = node.client.connect("udp", node.a.v4, 53)
                    stays = node.client.connect("tcp", node.b.v4, 53)
                    assert [ask(client) for client in (of_service, of_pod, stays)] == ["A", "A", "B"]
            assert "10.96.0.10:53" in steps.next()
            steps.next()
            assert [ask(client) for client in (of_service, of_pod)] == ["A", "A"]
            steps.next()
            assert pending_error(of_pod) == "ECONNABORTED"
            assert [ask(client) for client in (of_service, stays)] == ["B", "B"]
            assert "10.96.0.10:53" not in steps.next()

    def test_close_wait_piles_up(self, sockets: Sockets, at: At, recipe: Recipes) -> None:
        steps = recipe("CLOSE_WAIT piles up")
        leaked, server = sockets.tcp("127.0.0.2", 5432)
        server.shutdown(SHUT_WR)
        assert leaked.recv(1) == b""
        stays = sockets.tcp("127.0.0.2", 5432)
        assert "CLOSE_WAIT" in steps.next()
        steps.next()
        assert pending_error(leaked) == ""
        steps.next()
        assert pending_error(leaked) == "ECONNABORTED"
        assert "CLOSE_WAIT" not in steps.next()
        talk(*stays)

    def test_chaos_tests_without_root(self, sockets: Sockets, recipe: Recipes) -> None:
        steps = recipe("Chaos tests without root")
        steps.next()
        clients = [sockets.tcp("127.0.0.1", 5432)[0] for _ in range(3)]
        stays = sockets.tcp("127.0.0.1", 5433)
        destroyed: list[socket] = []
        for count in (0, 1, 3):
            steps.next()
            destroyed += [client for client in clients if pending_error(client) == "ECONNABORTED"]
            assert len(destroyed) == count
        talk(*stays)

    def test_a_timer_ends_what_is_stalled(self, node: Node, recipe: Recipes, tmp_path: Path) -> None:
        """A has died. None of its clients has been stalled for an hour, and then each for a moment."""
        steps = recipe("A timer ends what is stalled")
        (service,) = re.findall(r"^ExecStart=/usr/local/bin/(.*)$", document("examples/socklb-stalled.service"), re.M)
        commands = [*(command for command, _ in steps.commands[:3]), service.replace("/var/log/socklb", str(tmp_path))]
        with answering({server: pod.name for pod in (node.a, node.b) for server in pod.servers(5432)}):
            hang = [node.client.connect("tcp", node.a.v4, 5432) for _ in range(2)]
            lives = node.client.connect("tcp", node.b.v4, 5432)
            assert [ask(client) for client in (*hang, lives)] == ["A", "A", "B"]
            node.a.die()
            for client in hang:
                client.send(b"?")
            for command in commands:
                steps.shell(command.replace("stalled 60s", "stalled 1h"))
            assert [pending_error(client) for client in hang] == ["", ""]

            look, dry_run, destroy, service = (command.replace("stalled 60s", "stalled 100ms") for command in commands)
            sent_again = look.replace("100ms", "300ms")  # before, the age begins anew with a tail loss probe
            eventually(lambda: steps.shell(sent_again).count("\n") == 3, "both are stalled")
            steps.shell(dry_run)
            assert [pending_error(client) for client in hang] == ["", ""]
            steps.shell(destroy.replace("--tcp", "--tcp --limit 1"))
            steps.shell(service)
            assert [pending_error(client) for client in hang] == ["ECONNABORTED"] * 2
            assert (tmp_path / "stalled.jsonl").read_text("utf-8").count("\n") == 1
            assert ask(lives) == "B"
