"""What is kept for the fuzzer holds without it: every input of corpus and found, through the law of its target."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from socklb.filters.backend import Backend
from socklb.filters.conditions import Host, Port
from socklb.kernel import diag
from socklb.sources.protocol import Delete

from .. import bytecode_vm
from ..cli import runner
from ..damage import KINDS
from ..test_vendoring import vendor
from . import mutated, seeds, targets
from .targets import datagram, replies, watch

FUZZ = __name__.rpartition(".")[0]
ROOT = Path(__file__).resolve().parents[FUZZ.count(".") + 1]
INPUTS = [
    pytest.param(name, path, id=f"{name}-{path.parent.parent.name}-{path.name}")
    for name in targets.NAMES
    for path in targets.files(name)
]


@pytest.mark.parametrize(("name", "path"), INPUTS)
def test_the_law_holds(name: str, path: Path) -> None:
    targets.check_of(name)(path.read_bytes())


class TestTheCorpus:
    def test_every_target_has_one_that_is_small(self) -> None:
        sizes = {name: [path.stat().st_size for path in (targets.CORPUS / name).iterdir()] for name in targets.NAMES}
        assert min(map(len, sizes.values())) > 5
        assert sum(map(sum, sizes.values())) < 200_000

    def test_it_is_what_seeds_says(self) -> None:
        kept = {
            name: {path.name: path.read_bytes() for path in (targets.CORPUS / name).iterdir()} for name in targets.NAMES
        }
        assert kept == seeds.seeds()

    def test_nothing_is_kept_for_a_target_that_is_not_there(self) -> None:
        folders = {path.name for top in (targets.CORPUS, targets.FOUND) if top.is_dir() for path in top.iterdir()}
        assert folders == set(targets.NAMES)


class TestEveryLawCanFail:
    """A fault put into what it is about is seen with some input of its corpus."""

    @staticmethod
    def run_all(name: str) -> None:
        check = targets.check_of(name)
        for path in targets.files(name):
            check(path.read_bytes())

    def test_bytecode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bytecode_vm, "_passes", lambda *_: None)
        monkeypatch.setattr(bytecode_vm, "run", lambda *_: None)
        with pytest.raises(AssertionError):
            self.run_all("bytecode")

    def test_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Port, "matches", lambda *_: True)
        with pytest.raises(AssertionError):
            self.run_all("compiler")

    def test_datagram(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datagram, "encode_done", lambda done: (0, b"\xff\xff\xff\xff"))
        with pytest.raises(AssertionError):
            self.run_all("datagram")

    def test_language(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Host, "__str__", lambda host: "dst 10.0.0.1")
        with pytest.raises(AssertionError, match="written as something else"):
            self.run_all("language")

    @pytest.mark.parametrize("fault", [IndexError, KeyError, AssertionError, ValueError])
    def test_replies(self, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]) -> None:
        def decode_done(*_: object) -> None:
            raise fault

        monkeypatch.setattr(diag, "decode_done", decode_done)
        with pytest.raises(fault):
            self.run_all("replies")

    def test_replies_that_are_asked_for_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find, tcp, one_plan, one_damage, failure, in_front, no_buffers = 0, 0, 0, 1, len(KINDS) - 1, 0, 0
        plan = bytes([find, tcp, one_plan, one_damage, failure, in_front, no_buffers])
        assert replies.run(plan).came == "KernelError"
        monkeypatch.setattr(diag, "_ATTEMPTS", 1000)
        with pytest.raises(AssertionError):
            replies.run(plan)

    def test_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watch, "parse_line", lambda line: Delete(Backend("10.0.0.1", 80, "tcp"), str(line)))
        with pytest.raises(AssertionError, match="written as something else"):
            self.run_all("watch")

    def test_every_target_has_such_a_test(self) -> None:
        assert [name for name in targets.NAMES if not hasattr(self, f"test_{name}")] == []


class TestMutated:
    @pytest.fixture(autouse=True)
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """What is found here is no find."""
        monkeypatch.setattr(targets, "FOUND", tmp_path)
        return tmp_path

    def run(self, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["mutated", *words])
        return mutated.main()

    def test_as_many_as_asked_for(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, "--count", "300", "--seed", "7") == 0
        assert "\n300 calls with " in capsys.readouterr().out

    def test_what_breaks_the_law_is_kept_once(
        self, monkeypatch: pytest.MonkeyPatch, elsewhere: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(data: bytes) -> replies.Run:
            raise KeyError(data)

        monkeypatch.setattr(replies, "run", run)
        assert self.run(monkeypatch, "--count", "3") == 1
        (path,) = (elsewhere / "replies").iterdir()
        said = capsys.readouterr()
        assert path.read_bytes().hex() in said.err
        assert f"python -m {FUZZ} replies --again {path}" in said.err
        assert said.out.endswith("1 ways to break the law\n")

    def test_so_is_what_does_not_end(
        self, monkeypatch: pytest.MonkeyPatch, elsewhere: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(data: bytes) -> replies.Run:
            while True:
                pass

        monkeypatch.setattr(replies, "run", run)
        monkeypatch.setattr(mutated, "_SECONDS", 0.01)
        assert self.run(monkeypatch, "--count", "1") == 1
        assert len(list((elsewhere / "replies").iterdir())) == 1
        assert "Hang" in capsys.readouterr().err


class TestTheCommand:
    """python -m tests.fuzz"""

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", FUZZ, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(runner.ROOT), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
        )

    def test_runs_an_input_again(self) -> None:
        path = targets.files("datagram")[0]
        done = self.run("datagram", "--again", str(path))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [f"package under test: {targets.package()}", f"{path}: the law holds"]

    def test_on_the_package_under_test(self, tmp_path: Path) -> None:
        """Not on one that happens to be in the current directory."""
        vendor(tmp_path, "fuzzed.copy")
        path = targets.files("replies")[0]
        done = self.run("replies", "--again", str(path), PYTHONPATH=str(tmp_path), SOCKLB_UNDER_TEST="fuzzed.copy")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"package under test: {tmp_path / 'fuzzed' / 'copy'}\n")

    @pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is installed")
    def test_without_atheris_it_says_so(self) -> None:
        done = self.run("datagram", "--seconds", "1")
        assert done.returncode == 2
        assert "atheris is not installed" in done.stderr
