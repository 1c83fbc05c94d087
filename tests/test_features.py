"""Each folder above the core can be deleted from a copy: what needs it says so in one line, all else works."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

import socklb

from .sockets import Sockets, pending_error
from .test_layers import FEATURES
from .test_vendoring import PACKAGE, python

NAMES = {
    "reverse_nat": ("RevNatEntry", "RevNatMaps"),
    "conntrack": ("Flow", "find_flows"),
    "termination": ("BackendState", "BackendTable", "Instance", "Pass", "TerminationLoop", "terminate_connections"),
}
COMMANDS = {
    "list": (),
    "destroy": (),
    "terminate": ("termination",),
    "watch": ("termination", "sources"),
    "flows": ("conntrack",),
    "probe": (),
    "rev-nat": ("reverse_nat",),
    "demo": ("cli/demo",),
}
FOLDERS = [*(folder for folder in FEATURES if folder != "cli"), "cli/demo", "cli"]
LEFT_OUT = [
    *[(folder,) for folder in FOLDERS],
    *combinations(FOLDERS[:4], 2),
    (*FOLDERS[:4], "cli/demo"),
    (*FOLDERS[:4], "cli"),
]


@pytest.fixture(params=LEFT_OUT, ids="+".join)
def left_out(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    folders: tuple[str, ...] = request.param
    shutil.copytree(PACKAGE, tmp_path / "socklb", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in folders:
        shutil.rmtree(tmp_path / "socklb" / folder)
        (tmp_path / "socklb" / folder / "__pycache__").mkdir(parents=True)  # as git leaves it in a checkout
    return folders


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(root, "-m", "socklb", *words)


@pytest.mark.kernel
def test_what_is_left_finds_and_destroys(left_out: tuple[str, ...], tmp_path: Path, sockets: Sockets) -> None:
    """As a library; and every name that is missing says which folder it is in, if it is asked for by name."""
    client, _ = sockets.tcp("127.0.0.2", 9000)
    other, _ = sockets.tcp("127.0.0.3", 9000)
    missing = [(name, folder) for folder in left_out for name in NAMES.get(folder, ())]
    done = python(
        tmp_path,
        "-c",
        "import socklb, sys\n"
        "gone = socklb.SocketFilter.to_backend('127.0.0.2', 9000, 'tcp')\n"
        "print(len(list(socklb.find_sockets(gone))), socklb.destroy_sockets(gone).destroyed)\n"
        "missing = sys.argv[1:]\n"
        "print([name for name in missing if hasattr(socklb, name) or name in dir(socklb)])\n"
        "from socklb import *\n"
        "print({*socklb.__all__} <= {*dir()} & {*dir(socklb)}, len(socklb.__all__) + len(missing))\n"
        "for name in missing:\n"
        "    try: getattr(socklb, name)\n"
        "    except AttributeError as error: print(error)\n",
        *(name for name, _ in missing),
    )
    assert done.stderr == ""
    counts, found, names, *messages = done.stdout.splitlines()
    assert (counts, found, names) == ("1 1", "[]", f"True {len(socklb.__all__)}")
    assert messages == [
        f"socklb.{name} needs the folder {folder}/, which this copy of the package leaves out"
        for name, folder in missing
    ]
    assert (pending_error(client), pending_error(other)) == ("ECONNABORTED", "")


HELP_OF_EACH = """
import contextlib, io, json, sys
from socklb.cli import main

answers = {}
for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            code = main([command, "--help"])
        except SystemExit as end:
            code = end.code
    answers[command] = [code, errors.getvalue()]
print(json.dumps(answers))
"""


@pytest.mark.kernel
def test_the_commands_that_are_left_work(left_out: tuple[str, ...], tmp_path: Path, sockets: Sockets) -> None:
    if "cli" in left_out:
        done = run(tmp_path, "list")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "the command needs the folder cli/, which this copy of the package leaves out\n"
        return
    client, _ = sockets.tcp("127.0.0.2", 9000)
    lines = run(tmp_path, "--help").stdout.splitlines()
    offered = {line.split()[0] for line in lines if line.startswith("    ") and line[4:5].isalpha()}
    helped = json.loads(python(tmp_path, "-c", HELP_OF_EACH, *COMMANDS).stdout)
    for command, folders in COMMANDS.items():
        lacking = [folder for folder in folders if folder in left_out]
        assert (command in offered) == (not lacking)
        if lacking:
            text = f"socklb: the command {command} needs the folder {lacking[0]}/, which this copy of the package"
            assert helped[command] == [2, f"{text} leaves out\n"]
        else:
            assert helped[command] == [0, ""]
    if "demo" in offered:
        assert run(tmp_path, "demo").returncode == 0
    if "flows" in offered and "termination" in left_out:
        done = run(tmp_path, "flows", "-p")
        assert (done.returncode, "-p needs the folder termination/" in done.stderr) == (2, True)
    done = run(tmp_path, "destroy", "--json", "--tcp", "dst 127.0.0.2:9000")
    assert (done.returncode, json.loads(done.stdout)["destroyed"]) == (0, 1)
    assert pending_error(client) == "ECONNABORTED"


@pytest.mark.kernel
def test_an_option_of_a_folder_that_is_left_out(left_out: tuple[str, ...], tmp_path: Path, network: None) -> None:
    """It is not in the help, and says what is missing if it is given."""
    if {"termination", "cli"} & {*left_out}:
        return
    for folder, word, options in (
        ("reverse_nat", "rev-nat", ["--rev-nat"]),
        ("conntrack", "conntrack", ["--conntrack", "--external"]),
    ):
        if folder not in left_out:
            continue
        help = run(tmp_path, "terminate", "--help").stdout
        assert all(each not in help for each in [word, *options])
        for option in options:
            done = run(tmp_path, "terminate", option, "127.0.0.2:9000/TCP")
            text = f"socklb: {option} needs the folder {folder}/, which this copy of the package leaves out\n"
            assert (done.returncode, done.stderr) == (2, text)
    done = run(tmp_path, "terminate", "--no-conntrack", "--json", "127.0.0.2:9000/TCP")
    assert (done.returncode, json.loads(done.stdout)["conntrack"]) == (0, "off")


@pytest.mark.kernel
@pytest.mark.parametrize("left_out", [("conntrack",)], indirect=True)
def test_termination_without_conntrack(left_out: tuple[str, ...], tmp_path: Path, sockets: Sockets) -> None:
    """It is done for whose peer the backend is, unless the rest is required."""
    client, _ = sockets.tcp("127.0.0.2", 9000)
    done = python(
        tmp_path,
        "-c",
        "import socklb\n"
        "gone = [socklb.Backend.parse('127.0.0.2:9000/TCP')]\n"
        "try: socklb.terminate_connections(gone, namespaces='current', conntrack=True)\n"
        "except socklb.NotSupported as error: print(error.strerror)\n"
        "report = socklb.terminate_connections(gone, namespaces='current')\n"
        "print(report.destroyed, report.conntrack)\n",
    )
    refusal = "looking into conntrack needs the folder conntrack/, which this copy of the package leaves out"
    assert (done.stdout.splitlines(), done.stderr) == ([refusal, "1 off"], "")
    assert pending_error(client) == "ECONNABORTED"
