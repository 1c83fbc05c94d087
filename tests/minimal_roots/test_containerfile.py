"""docs/Containerfile, carried out in a root of the kind that it starts from."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import socklb

from ..cli.runner import SECONDS, Result
from ..project import ROOT, document, only_in_checkout
from .clients import CUT, FILTER, in_own_network, run_among_clients
from .roots import WHOLE, MinimalRoot, Roots, enter, given

pytestmark = [only_in_checkout, pytest.mark.kernel]

_BASES = {"python:3-alpine": "musl"}


class Image(Roots):
    """What an engine makes of a Containerfile; only of the instructions that ours has."""

    def __init__(self, containerfile: str, tree: Path) -> None:
        self._tree = tree
        self._environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # the base's
        self._entrypoint: list[str] = []
        self._command: list[str] = []
        for line in containerfile.splitlines():
            self._follow(*line.split(maxsplit=1))

    def _follow(self, instruction: str, rest: str) -> None:
        if instruction == "FROM":
            shutil.copytree(given(_BASES[rest]), self._tree, symlinks=True)
        elif instruction == "COPY":
            source, target = rest.split()
            shutil.copytree(ROOT / source, f"{self._tree}{target}")
        elif instruction == "ENV":
            name, value = rest.split("=")
            self._environment[name] = value
        elif instruction == "ENTRYPOINT":
            self._entrypoint = json.loads(rest)
        elif instruction == "CMD":
            self._command = json.loads(rest)
        else:
            raise ValueError(f"an instruction that is carried out nowhere: {instruction} {rest}")

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A container, which sees the processes outside and is in their network."""
        return subprocess.Popen(
            [*self._entrypoint, *(words or self._command)],
            env=self._environment,
            preexec_fn=lambda: enter(str(self._tree), WHOLE),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, root: MinimalRoot, *words: str, stdin: str = "") -> Result:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=SECONDS)
        return Result(process.returncode, out, err)


@pytest.fixture(scope="module")
def image(user_namespaces: None, directory: Path) -> Image:
    return Image(document("Containerfile"), directory / "image")


def test_it_has_this_version(image: Image) -> None:
    result = in_own_network(lambda: image.run(WHOLE, "--version"))
    assert (result.code, result.out) == (0, f"socklb {socklb.__version__}\n"), result


def test_destroy(image: Image) -> None:
    seen = run_among_clients(image, WHOLE, "destroy", FILTER)
    assert (seen.result.code, seen.to_backend, seen.to_others) == (0, CUT, [""] * 4), seen.result


def test_by_default_it_watches_until_it_is_stopped(image: Image) -> None:
    def play() -> tuple[str, int]:
        with image.start() as process:
            assert process.stderr is not None
            said = process.stderr.readline()
            process.terminate()
            return said, process.wait(SECONDS)

    said, code = in_own_network(play)
    assert ("/run/socklb/backends.json" in said, code) == (True, 0), said
