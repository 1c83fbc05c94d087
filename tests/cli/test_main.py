"""What all commands have in common: exit codes, JSON, closed pipes, and the interpreters they run on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from ..sockets import Sockets, eventually, pending_error
from .runner import (
    ROOT,
    SECONDS,
    Result,
    bytes_waiting,
    closed_pipe,
    command,
    drop_privilege,
    environment,
    run,
)

F_SETPIPE_SZ = 1031
SIGNAL_MASKS = ("SigPnd", "ShdPnd", "SigBlk")  # in /proc/PID/status

NO_NETLINK = f"""
def refuse():
    raise OSError({errno.EPROTONOSUPPORT}, "")
for name in ".kernel.diag", ".conntrack.table":
    module(name).open_netlink = refuse
"""
INTERRUPTED = """
def interrupt(*_):
    raise KeyboardInterrupt
module(".kernel.netlink_socket").NetlinkSocket._receive = interrupt
"""
TERMINATED_EARLY = """
import os, signal
cli = module(".cli")
parse = cli.parse
def terminated(words):
    os.kill(os.getpid(), signal.SIGTERM)
    return parse(words)
cli.parse = terminated
"""
OUT_OF_MEMORY = """
def fail():
    raise MemoryError
for name in ".kernel.diag", ".conntrack.table":
    module(name).open_netlink = fail
"""
OUT_OF_DESCRIPTORS = f"""
def fail():
    raise OSError({errno.EMFILE}, "too many open files")
for name in ".kernel.diag", ".conntrack.table":
    module(name).open_netlink = fail
"""
NO_UDP = """
diag = module(".kernel.diag")
dump = diag.DiagSocket.dump
def fail_for_udp(self, type, request, doing, **options):
    if " udp " in doing:
        raise module(".errors").KernelError(5, doing)
    return dump(self, type, request, doing, **options)
diag.DiagSocket.dump = fail_for_udp
"""
ASCII: dict[str, str | None] = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UDP = "127.0.0.2:53/UDP"
ANY_COMMAND = pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "--netns", "all"],
        ["destroy", "dst 127.0.0.2"],
        ["destroy", "--dry-run", "--unbounded"],
        ["terminate", UDP],
        ["flows"],
        ["probe"],
        ["demo"],
    ],
    ids=" ".join,
)


@pytest.mark.kernel
class TestExitCodes:
    """0 done (nothing to do included), 2 usage, 3 the kernel cannot, 4 not permitted, 130 interrupted.

    `--json`: standard output carries one JSON object and nothing else, also on 1, 3, 4, 130, 143 (then with `error`).
    What ends with 1 is in test_destroy, test_terminate and test_demo; watch and rev-nat have files of their own.
    """

    @ANY_COMMAND
    def test_done_is_0(self, network: None, words: list[str]) -> None:
        result = run(*words)
        assert (result.code, result.err) == (0, "")

    @ANY_COMMAND
    @pytest.mark.parametrize(
        ("patch", "code", "text"),
        [
            (NO_NETLINK, 3, "CONFIG_"),
            (INTERRUPTED, 130, "interrupted"),
            (TERMINATED_EARLY, 143, "terminated"),
            (OUT_OF_MEMORY, 1, "out of memory"),
            (OUT_OF_DESCRIPTORS, 1, "oo many open files"),
        ],
        ids=["no netlink", "interrupted", "terminated while it reads its words", "no memory", "no descriptors"],
    )
    def test_what_ends_any_command(self, network: None, words: list[str], patch: str, code: int, text: str) -> None:
        result, lines = run(*words, "--json", patch=patch), run(*words, patch=patch)
        assert (result.code, lines.code, lines.err) == (code, code, result.err)
        assert text in result.json["error"]
        if words == ["probe"] and code == 3:  # that is its answer, and not only an error
            said = result.json
            del said["error"], said["conntrack"]
            assert {entry["status"] for entry in said.values()} == {"no_diag"}
            assert text in lines.out
        else:
            assert result.err == f"socklb: {result.json['error']}\n"

    @pytest.mark.parametrize(
        "words",
        [["destroy", "dst 127.0.0.2"], ["terminate", UDP], ["watch", "--source", "-"], ["probe"]],
        ids=" ".join,
    )
    def test_without_privilege_is_4_and_the_capability_is_named(self, sockets: Sockets, words: list[str]) -> None:
        sockets.udp("127.0.0.2", 53)
        result = run(*words, preexec=drop_privilege)
        assert result.code == 4
        assert "CAP_NET_ADMIN" in result.out + result.err

    def test_an_answer_that_no_kernel_gives_is_1(self, network: None) -> None:
        cut = "module('.kernel.diag').DiagSocket._receive = lambda self, doing: b'cut'"
        result = run("list", "--json", patch=cut)
        assert result.code == 1
        assert result.json["error"] in result.err

    def test_sockets_seen_before_an_error_are_in_the_object(self, sockets: Sockets) -> None:
        sockets.tcp("127.0.0.2", 80)
        sockets.udp_bound("127.0.0.2", 53)
        result = run("list", "--json", patch=NO_UDP)
        assert result.code == 1
        assert sorted(row["state"] for row in result.json["sockets"]) == ["ESTABLISHED", "ESTABLISHED", "LISTEN"]
        assert "list udp sockets" in result.json["error"]


class TestBadInput:
    """On 2 standard output is empty, and standard error names the word (in a filter its column too)."""

    @pytest.mark.parametrize("words", [["list"], ["destroy", "--json"]], ids=" ".join)
    @pytest.mark.parametrize(
        ("text", "word", "column"),
        [
            ("dst 127.0.0.2 and dprot = 9000", "'dprot'", 19),
            ("dst www.example.org", "'www.example.org'", 5),
            ("dport = 70000", "'70000'", 9),
            ("dst 10.0.0.1 and", "the end", 17),
        ],
    )
    def test_in_the_filter(self, words: list[str], text: str, word: str, column: int) -> None:
        result = run(*words, text)
        assert (result.code, result.out) == (2, "")
        first, shown, pointer = result.err.splitlines()
        assert first.startswith("socklb: filter: ")
        assert word in first
        assert first.endswith(f"column {column}")
        assert shown.strip() == text
        assert pointer.index("^") == shown.index(text) + column - 1
        assert run(*words, *text.split()) == result

    @pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["destroy", "--unbounded"]], ids=" ".join)
    def test_in_a_name_that_is_looked_up(self, words: list[str]) -> None:
        result = run(*words, "dst 10.0.0.1 and dev nosuchdev0")
        assert (result.code, result.out) == (2, "")
        assert "'nosuchdev0'" in result.err

    def test_in_a_word_that_cannot_be_printed(self) -> None:
        result = run("list", "dst \u00e9", env=ASCII)
        assert (result.code, result.out) == (2, "")
        assert "column 5\n" in result.err
        assert "Traceback" not in result.err

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ([], "COMMAND"),
            (["lits"], "lits"),
            (["--nosuch"], "COMMAND"),
            (["list", "--nosuch"], "socklb list: error: unrecognized arguments: --nosuch"),
            (["list", "--state"], "--state"),
            (["list", "--state", "opne"], "'opne'"),
            (["list", "--audit", "x"], "--audit"),
            (["list", "--netns"], "--netns"),
            (["destroy"], "FILTER"),
            (["destroy", "--state", "established", "--tcp"], "FILTER"),
            (["destroy", ""], "'' could match everything"),
            (["destroy", "not dst 10.0.0.1"], "'not dst 10.0.0.1' could match everything"),
            (["destroy", "dst 127.0.0.2 or fwmark 1", "--json"], "could match everything"),
            (["destroy", "dst 10.0.0.1", "--all"], "--all"),
            (["destroy", "dst 10.0.0.1", "--limit", "0"], "'0'"),
            (["destroy", "dst 10.0.0.1", "--limit", "-1"], "--limit: expected one argument"),
            (["destroy", "dst 10.0.0.1", "--limit", "1.5"], "'1.5'"),
            (["destroy", "dst 10.0.0.1", "--limit", "\u0661"], "--limit"),
            (["destroy", "--state", "listenin", "dst 10.0.0.1"], "'listenin'"),
            (["destroy", "--rev-nat", "dst 10.0.0.1"], "--rev-nat"),
            (["terminate"], "BACKEND"),
            (["terminate", UDP, "127.0.0.2:9000"], "'127.0.0.2:9000' names no protocol"),
            (["terminate", "127.0.0.2:65536/UDP", "--json"], "'127.0.0.2:65536/UDP'"),
            (["terminate", "--rev-nat", "/sys/fs/bpf", UDP], "a directory of maps is --rev-nat-dir /sys/fs/bpf"),
            (["terminate", "--", "--rev-nat"], "backend '--rev-nat' names no protocol"),
            (["terminate", "--rev-nat=/sys/fs/bpf", UDP], "--rev-nat: ignored explicit argument '/sys/fs/bpf'"),
            (["terminate", "--rev-nat-dir", "/sys/fs/bpf", UDP, "--json"], "--rev-nat-dir needs --rev-nat"),
            (["terminate", "--rev-nat", "--rev-nat-dir", "/nonexistent", UDP, "--json"], "no directory /nonexistent"),
            (["terminate", "--rev-nat", "--rev-nat-dir", "/proc/self/net", UDP], "no reverse-NAT map in /proc/self/"),
            (["terminate", "--tcp", UDP], "--tcp"),
            (["terminate", "--net", "current", UDP], "--net"),
            (["terminate", "--audit"], "--audit"),
            (["watch"], "--source"),
            (["watch", "--source"], "--source"),
            (["watch", "--source", "-", "--netns", "nosuch"], "'nosuch'"),
            (["watch", "--source", "-", "--audit", "/nonexistent/audit"], "/nonexistent/audit cannot be opened"),
            (["watch", "--source", "-", "--rev-nat-dir", "/sys/fs/bpf"], "--rev-nat-dir needs --rev-nat"),
            (["watch", "--source", "-", "--rev-nat", "--rev-nat-dir", "/nonexistent"], "no directory /nonexistent"),
            (["watch", "--source", "-", UDP], UDP),
            (["rev-nat", "x"], "x"),
            (["rev-nat", "--rev-nat"], "--rev-nat"),
            (["rev-nat", "--rev-nat-dir", "/nonexistent", "--json"], "no directory /nonexistent"),
            (["rev-nat", "--stale=1"], "--stale"),
            (["rev-nat", "--netns", "current"], "--netns"),
            (["probe", "udp"], "udp"),
            (["demo", "--limit", "1"], "--limit"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )  # fmt: skip
    def test_on_the_command_line(self, words: list[str], text: str) -> None:
        result = run(*words)
        assert (result.code, result.out) == (2, "")
        assert text in result.err
        assert "Traceback" not in result.err


VALUE_ERROR_AT_UDP = """
SocketTable = module(".engine.find").SocketTable
search = SocketTable.search
def broken(self, filter, *rest, **options):
    if filter.protocol == 17:
        raise ValueError("broken")
    return search(self, filter, *rest, **options)
SocketTable.search = broken
"""


@pytest.mark.kernel
class TestAValueErrorThatComesLate:
    """2 only if nothing was destroyed or printed, else 1, and what was done is shown."""

    def test_destroy(self, sockets: Sockets) -> None:
        words = ("destroy", "dst 127.0.0.2", "--state", "established")
        assert run(*words, "--json", patch=VALUE_ERROR_AT_UDP) == (2, "", "socklb: broken\n")
        clients = [sockets.tcp("127.0.0.2", 9000)[0] for _ in range(2)]
        result = run(*words, "--limit", "1", "--json", patch=VALUE_ERROR_AT_UDP)
        assert (result.code, result.err) == (1, "socklb: broken\n")
        assert (result.json["destroyed"], result.json["skipped"], result.json["error"]) == (1, 1, "broken")
        lines = run(*words, patch=VALUE_ERROR_AT_UDP)
        assert (lines.code, lines.err) == (1, "socklb: broken\n")
        assert lines.out.endswith("1 matched: 1 destroyed, 0 gone, 0 skipped, 0 failed\n")
        assert {pending_error(client) for client in clients} == {"ECONNABORTED"}

    def test_list(self, sockets: Sockets) -> None:
        assert run("list", "--json", patch=VALUE_ERROR_AT_UDP) == (2, "", "socklb: broken\n")
        sockets.listen("127.0.0.2", 9000)
        result = run("list", "--json", patch=VALUE_ERROR_AT_UDP)
        assert (result.code, [row["sport"] for row in result.json["sockets"]]) == (1, [9000])
        assert result.err == "socklb: ended by ValueError: broken\n"


@pytest.mark.kernel
def test_socklb_debug_shows_each_request_and_answer_and_changes_nothing_else(sockets: Sockets) -> None:
    client = sockets.udp("127.0.0.2", 53)
    port = client.getsockname()[1]
    usual = run("list", "--udp")
    assert run("list", "--udp", env={"SOCKLB_DEBUG": "0"}) == usual
    verbose = run("list", "--udp", env={"SOCKLB_DEBUG": "1"})
    assert verbose[:2] == usual[:2] == (0, usual.out)
    shown = [re.fullmatch(r" *\d+\.\d ms socklb: (->|<-) (.+)", line) for line in verbose.err.splitlines()]
    assert [line[1] for line in shown if line] == ["->", "<-", "<-", "->", "<-"]
    assert len(shown) == 5, "a request, a row and the end; of v6, a request and the end"
    assert run("list", "--udp", env={"SOCKLB_DEBUG": "1"}, preexec=lambda: os.close(2)) == usual
    destroyed = run("destroy", "--udp", "dst 127.0.0.2", "--json", env={"SOCKLB_DEBUG": "1"})
    assert (destroyed.code, destroyed.json["destroyed"], pending_error(client)) == (0, 1, "ECONNABORTED")
    *_, request, answer = [line for line in destroyed.err.splitlines() if "SOCK_DESTROY" in line or "errno" in line]
    assert f" 127.0.0.1:{port} -> 127.0.0.2:53 " in request
    assert answer.endswith("errno 0")


@contextmanager
def stuck(*words: str, patch: str = "", **changes: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A command that stands still, for its standard output is a pipe of one page that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    with (
        os.fdopen(reader, encoding="utf-8") as pipe,
        subprocess.Popen(
            command(words, patch=patch),
            cwd=ROOT,
            env=environment(changes),
            stdout=writer,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        try:
            # A page takes many small writes: a pipe that select calls full may have room for more of them.
            eventually(lambda: bytes_waiting(reader) > 3000, "a full pipe")
            os.close(writer)
            yield process, pipe
        finally:
            process.kill()


def is_on_its_way(number: int, pid: int) -> bool:
    """Whether a signal was sent to a process that has neither taken it yet nor blocks it."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as lines:
        masks = {name: int(value, 16) for name, value in (line.split(":", 1) for line in lines) if name in SIGNAL_MASKS}
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & 1 << (number - 1))


@pytest.fixture
def many(sockets: Sockets) -> int:
    """More sockets than a pipe takes rows of."""
    count = 300
    for port in range(1, count + 1):
        sockets.udp("127.0.0.2", port)
    return count


BUFFERED = pytest.mark.parametrize("changes", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])


@pytest.mark.kernel
class TestPipes:
    """A closed pipe is silent, and changes no exit code. An interrupt leaves whole JSON."""

    @BUFFERED
    @pytest.mark.parametrize("json", [[], ["--json"]], ids=["table", "json"])
    @pytest.mark.parametrize("words", [["list"], ["destroy", "--dry-run", "--unbounded"]], ids=" ".join)
    def test_a_reader_that_leaves_after_a_line(
        self, many: int, words: list[str], json: list[str], changes: dict[str, str]
    ) -> None:
        with stuck(*words, *json, **changes) as (process, pipe):
            assert pipe.readline()
            pipe.close()
            _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (0, "")

    @BUFFERED
    @pytest.mark.parametrize(
        "words", [["--version"], ["--help"], ["list"], ["list", "--json"], ["probe"]], ids=" ".join
    )
    def test_a_reader_that_was_never_there(self, network: None, words: list[str], changes: dict[str, str]) -> None:
        with closed_pipe() as writer:
            assert run(*words, env=changes, stdout=writer) == Result(0, "", "")

    @BUFFERED
    def test_what_was_refused_is_reported_without_a_reader_too(self, many: int, changes: dict[str, str]) -> None:
        with closed_pipe() as writer:
            result = run("destroy", "dst 127.0.0.2", env=changes, stdout=writer, preexec=drop_privilege)
        assert result.code == 4
        assert "CAP_NET_ADMIN" in result.err
        assert "BrokenPipe" not in result.err

    @pytest.mark.parametrize(
        "words",
        [
            ["list"],
            ["list", "--json"],
            ["destroy", "dst 127.0.0.2", "--json"],
            ["terminate", UDP],
            ["probe"],
        ],
    )
    def test_no_standard_output_at_all(self, sockets: Sockets, words: list[str]) -> None:
        client = sockets.udp("127.0.0.2", 53)
        assert run(*words, preexec=lambda: os.close(1)) == Result(0, "", "")
        assert pending_error(client) == ("ECONNABORTED" if words[0] in ("destroy", "terminate") else "")

    @BUFFERED
    def test_a_warning_to_a_closed_standard_error_changes_no_exit_code(
        self, sockets: Sockets, changes: dict[str, str]
    ) -> None:
        sockets.udp("127.0.0.2", 53)
        with closed_pipe() as writer:
            for words in (["destroy", "dst 127.0.0.2"], ["terminate", UDP]):
                result = run(*words, "--json", env=changes, stderr=writer, preexec=drop_privilege)
                assert (result.code, result.json["failed"]) == (4, 1)

    def test_no_standard_error_puts_nothing_on_standard_output(self) -> None:
        assert run("list", "--json", "dst nowhere", preexec=lambda: os.close(2)) == Result(2, "", "")

    @BUFFERED
    def test_a_full_disk_is_an_error(self, network: None, changes: dict[str, str]) -> None:
        with open("/dev/full", "wb") as full:
            result = run("list", env=changes, stdout=full.fileno())
        assert result == Result(1, "", f"socklb: write standard output: {os.strerror(errno.ENOSPC)}\n")

    @BUFFERED
    def test_an_interrupt_in_the_middle_of_a_list_leaves_whole_json(self, many: int, changes: dict[str, str]) -> None:
        with stuck("list", "--json", **changes) as (process, pipe):
            process.send_signal(signal.SIGINT)
            eventually(lambda: not is_on_its_way(signal.SIGINT, process.pid), "a signal taken, or held back")
            said = json.loads(pipe.read())
            _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (130, "socklb: interrupted\n")
        assert said["error"] == "interrupted"
        assert len(said["sockets"]) < many

    @BUFFERED
    @pytest.mark.parametrize("words", [["list", "--json"], ["destroy", "dst 127.0.0.2"]], ids=" ".join)
    def test_a_reader_that_takes_nothing_keeps_no_command_that_is_to_end(
        self, many: int, words: list[str], changes: dict[str, str]
    ) -> None:
        with stuck(*words, patch="module('.cli.signals').PATIENCE_SECONDS = 0.1", **changes) as (process, _):
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, err) == (143, "socklb: terminated\n")


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (["-I", "-S"], {}),
        (["-I", "-S", "-OO", "-B", "-X", "dev"], {}),
        ([], ASCII),
        ([], {"HOME": None, "USER": None, "LANG": None, "PATH": None}),
        ([], {"SSH_CONNECTION": "\udcff not an address"}),
    ],
    ids=["isolated", "without docstrings", "ASCII", "no HOME", "odd SSH_CONNECTION"],
)
class TestEveryInterpreter:
    """A minimal container image has no site-packages, no locale and no home."""

    def test_lists_and_destroys(self, sockets: Sockets, flags: list[str], env: dict[str, str | None]) -> None:
        client = sockets.udp("::ffff:127.0.0.2", 53)
        listed = run("list", "dst 127.0.0.2", flags=flags, env=env)
        assert (listed.code, listed.err, len(listed.out.splitlines())) == (0, "", 2)
        result = run("destroy", "--json", "dst 127.0.0.2", flags=flags, env=env)
        assert (result.code, result.err, result.json["destroyed"]) == (0, "", 1)
        assert pending_error(client) == "ECONNABORTED"

    def test_helps_probes_and_shows(self, network: None, flags: list[str], env: dict[str, str | None]) -> None:
        for words in (["--help"], ["destroy", "--help"], ["probe"], ["demo"]):
            result = run(*words, flags=flags, env=env)
            assert (result.code, result.err, bool(result.out)) == (0, "", True), words
