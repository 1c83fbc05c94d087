"""The files that people start from: docs/kubernetes.yaml, docs/Containerfile, docs/socklb.service."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from inspect import getsource
from typing import Any

import pytest

from socklb.cli import metrics, parse

from .project import ROOT, document, only_in_checkout
from .test_privilege import CAP_BPF, ROWS

pytestmark = only_in_checkout

METRICS = getsource(metrics)
CAPABILITIES = {capability.name for capability in ROWS["watch everywhere"].needs}


def documents(text: str) -> list[Any]:
    """What is in a file of YAML, as far as ours goes: maps and lists in blocks of two spaces more, and scalars that no
    version of YAML takes for anything else. What is not so fails.
    """
    found = []
    for part in text.split("\n---\n"):
        lines = [line for line in part.splitlines() if not line.lstrip().startswith("#")]
        blocks = [(len(line) - len(line.lstrip(" ")), line.lstrip(" ")) for line in lines]
        found.append(_block(blocks, 0))
        assert blocks == []
    return found


def _block(lines: list[tuple[int, str]], indent: int) -> Any:
    """The list or map that begins here; its lines are taken away."""
    assert lines[0][0] == indent, lines[0]
    items: list[Any] = []
    members: dict[str, Any] = {}
    while lines and lines[0][0] == indent:
        is_item, key, value = re.fullmatch(r"(- )?(?:([\w./]+):(?: |$))?(.*)", lines.pop(0)[1]).groups()  # type: ignore[union-attr]
        if is_item and key:
            lines.insert(0, (indent + 2, f"{key}: {value}" if value else f"{key}:"))
        inner = _block(lines, indent + 2) if (is_item and key) or not value else _scalar(value)
        if is_item:
            items.append(inner)
        else:
            assert key not in {None, *members}, key
            members[key] = inner
    assert not (items and members)
    return items or members


def _scalar(text: str) -> Any:
    if re.fullmatch(r'".*"|true|false|0|[1-9]\d*', text):
        return json.loads(text)
    assert re.fullmatch(r"(?!(?i:y|n|yes|no|on|off|null)$)[A-Za-z/][\w./:-]*", text), text
    return text


class Manifest:
    def __init__(self, text: str) -> None:
        self.account, self.role, self.binding, self.agents = documents(text)
        self.pod = self.agents["spec"]["template"]["spec"]
        (self.container,) = self.pod["containers"]
        assert self.container["env"] == [{"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]
        self.options = parse([word.replace("$(HOST_IP)", "10.0.0.1") for word in self.container["args"]])


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(document("kubernetes.yaml"))


class TestManifest:
    def test_it_follows_the_cluster_and_after_the_sed_of_the_page_only_looks(self, manifest: Manifest) -> None:
        assert (manifest.options.source, manifest.options.dry_run) == ("kubernetes", False)
        (script,) = re.findall("sed '(.*)' docs/kubernetes.yaml", document("kubernetes.md"))
        changed = subprocess.check_output(["sed", script, ROOT / "docs/kubernetes.yaml"], encoding="utf-8")
        assert Manifest(changed).options.dry_run

    def test_it_may_list_and_watch_endpointslices_and_nothing_else(self, manifest: Manifest) -> None:
        assert manifest.role["rules"] == [
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}
        ]
        assert manifest.binding["roleRef"]["name"] == manifest.role["metadata"]["name"]
        assert manifest.binding["subjects"] == [{"kind": "ServiceAccount", **manifest.account["metadata"]}]
        assert manifest.pod["serviceAccountName"] == manifest.account["metadata"]["name"]
        assert manifest.agents["metadata"]["namespace"] == manifest.account["metadata"]["namespace"]

    def test_it_has_the_capabilities_that_it_needs_and_no_more(self, manifest: Manifest) -> None:
        context = manifest.container["securityContext"]
        capabilities = context["capabilities"]
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
        assert capabilities["drop"] == ["ALL"]
        assert {f"CAP_{name}" for name in capabilities["add"]} == CAPABILITIES

    def test_the_probes_ask_where_it_answers(self, manifest: Manifest) -> None:
        port = metrics.parse_address(manifest.options.metrics)[1]
        probes = [manifest.container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]
        assert probes == [{"path": path, "port": port} for path in ("/healthz", "/readyz")]
        assert all(f'"{probe["path"]}":' in METRICS for probe in probes)
        assert [each["containerPort"] for each in manifest.container["ports"]] == [port]
        assert {*re.findall(r"(?:port |:)(\d{4,})\b(?!/TCP)", document("kubernetes.md"))} == {str(port)}

    def test_its_memory_outlives_the_pod(self, manifest: Manifest) -> None:
        (mount,), (volume,) = manifest.container["volumeMounts"], manifest.pod["volumes"]
        assert manifest.options.remember.rpartition("/")[0] == mount["mountPath"] == volume["hostPath"]["path"]


def test_the_command_takes_the_arguments_of_the_containerfile() -> None:
    (command,) = re.findall("^CMD (.*)$", document("Containerfile"), re.MULTILINE)
    assert parse(json.loads(command)).source == "/run/socklb/backends.json"


def test_the_unit_has_arguments_that_the_command_takes_and_capabilities_that_it_needs() -> None:
    keys = dict(line.split("=", 1) for line in document("socklb.service").splitlines() if "=" in line)
    assert parse(shlex.split(keys["ExecStart"])[1:]).audit.startswith(f"/var/log/{keys['LogsDirectory']}/")
    assert {*keys["CapabilityBoundingSet"].split()} == {*CAPABILITIES, CAP_BPF.name}  # for --rev-nat, if it is added


def test_the_page_names_options_and_metrics_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["watch", "--help"])
    there = re.findall(r"--[a-z-]+|socklb_\w+", capsys.readouterr().out + METRICS)
    named = re.findall(r"`(--[a-z-]+|socklb_\w+)", document("kubernetes.md"))
    assert len(named) > 12
    assert {*named} - {*there} == set()
