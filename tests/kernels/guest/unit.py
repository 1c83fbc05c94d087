"""docs/socklb.service, where systemd is the first process: the service works, and can do little else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ... import world
from ...project import ROOT, document
from .report import Report

_UNIT = "socklb.service"
_COMMAND = Path("/usr/local/bin/socklb")
_SOURCE = Path("/run/socklb/backends.json")
_AUDIT = Path("/var/log/socklb/audit.jsonl")
_ADDRESS, _PORTS = "10.9.0.1", (9001, 9002, 9003)
_LIMIT_SECONDS = 120  # ends what hangs


def main() -> None:
    world.loopback_up()
    clients = {port: [_connected(port)] for port in _PORTS}
    world.new_network()  # another one than the service's
    for port in _PORTS:
        clients[port].append(_connected(port))
    passed = failed = 0
    for what, ok in _checks(clients):
        print("ok" if ok else "FAIL", what, flush=True)
        passed += ok
        if not ok:
            failed = 1
            subprocess.run(["journalctl", "--no-pager", "--unit", _UNIT])
            break
    Report.of(passed, failed, {}).show()


def _checks(clients: dict[int, list[socket.socket]]) -> Iterator[tuple[str, bool]]:
    """Each supposes that those before it went well."""
    _install()
    yield "it starts", _run("systemctl", "enable", "--now", _UNIT) and _until(_SOURCE.parent.is_dir)
    yield "it cuts", _cuts(9001, clients.pop(9001))
    os.kill(int(_shown("MainPID")), signal.SIGKILL)
    yield "killed, it is started anew", _until(lambda: (_shown("NRestarts"), _shown("SubState")) == ("1", "running"))
    yield "it cuts again", _cuts(9002, clients.pop(9002))
    _AUDIT.rename(_AUDIT.with_suffix(".1"))
    yield "reload: a new file of records", _run("systemctl", "reload", _UNIT) and _until(_AUDIT.exists)
    yield "it cuts, and records it there", _cuts(9003, clients.pop(9003)) and _until(lambda: _AUDIT.stat().st_size > 0)
    yield "only root reads them", _AUDIT.stat().st_mode & 0o777 == 0o600
    yield "it can do little else", _run("systemd-analyze", "security", "--no-pager", "--threshold=40", _UNIT)
    yield "stop", _run("systemctl", "stop", _UNIT) and (_shown("Result"), _shown("ExecMainStatus")) == ("success", "0")


def _install() -> None:
    """The unit, and what `pip install .` makes: there is no pip here."""
    shutil.copytree(ROOT / "socklb", f"{sysconfig.get_path('purelib')}/socklb")
    _COMMAND.parent.mkdir(parents=True, exist_ok=True)
    _COMMAND.write_text(f"#!{sys.executable}\nimport sys\nfrom socklb.cli import main\nsys.exit(main())\n")
    _COMMAND.chmod(0o755)
    Path("/etc/systemd/system", _UNIT).write_text(document(_UNIT), encoding="utf-8")


def _cuts(port: int, left: list[socket.socket]) -> bool:
    """Whether clients of this port are cut when it is taken out of the file, which may not have been read before."""

    def cut() -> bool:
        _write(_PORTS)
        time.sleep(1)
        _write([other for other in _PORTS if other != port])
        left[:] = [client for client in left if not _is_cut(client)]
        return not left

    return _until(cut)


def _write(ports: Sequence[int]) -> None:
    new = _SOURCE.with_suffix(".new")
    backends = [{"backend": f"{_ADDRESS}:{port}/TCP"} for port in ports]
    new.write_text(json.dumps({"op": "replace", "backends": backends}), encoding="ascii")
    new.rename(_SOURCE)


def _connected(port: int) -> socket.socket:
    """A client; the kernel accepts for a listener that is left open."""
    listener = socket.create_server((_ADDRESS, port))
    listener.detach()
    client = socket.create_connection((_ADDRESS, port))
    client.settimeout(5)
    return client


def _is_cut(client: socket.socket) -> bool:
    try:
        client.recv(1)
    except ConnectionAbortedError:
        return True
    except TimeoutError:
        pass
    return False


def _until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _run(*command: str) -> bool:
    """Whether it ends with 0; else what it said is shown."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


def _shown(name: str) -> str:
    command = ["systemctl", "show", "--property", name, "--value", _UNIT]
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()


if __name__ == "__main__":
    main()
