"""A function called for each of many items, in as many threads as there are processors."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import KernelError
from socklb.engine import parallel
from socklb.engine.parallel import in_parallel
from socklb.kernel.threads import start_thread

from ..sockets import eventually, in_child

PATIENCE = 30  # seconds until a test that hangs fails instead


@contextmanager
def processors(count: int) -> Iterator[None]:
    """As if there were so many; in the end no thread is left."""
    before = len(os.listdir("/proc/self/task"))
    try:
        with mock.patch.object(os, "sched_getaffinity", return_value=set(range(count))):
            yield
    finally:
        eventually(lambda: len(os.listdir("/proc/self/task")) <= before, "threads end")


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def wait_until_the_main_thread_waits() -> None:
    """A signal that comes while it goes to sleep does not wake it: Python's handlers run when it is awake."""
    state = Path(f"/proc/self/task/{os.getpid()}/stat")
    time.sleep(0.02)
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "the main thread waits")


class TestEach:
    @given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 4))
    def test_the_function_is_called_once_for_each_item(self, items: list[int], count: int) -> None:
        seen: list[int] = []
        with processors(count):
            in_parallel(seen.append, iter(items))
        assert Counter(seen) == Counter(items)

    @pytest.mark.parametrize(("items", "count", "expected"), [(12, 2, 2), (12, 3, 3), (2, 8, 2)])
    def test_so_many_at_once_as_there_are_processors_and_items(self, items: int, count: int, expected: int) -> None:
        all_at_work = threading.Barrier(expected)
        at_work: list[int] = []
        most: list[int] = []

        def work(item: int) -> None:
            at_work.append(item)
            all_at_work.wait(PATIENCE)
            most.append(len(at_work))
            all_at_work.wait(PATIENCE)
            at_work.remove(item)

        start = mock.patch.object(parallel, "start_thread", side_effect=start_thread)
        with start as started, processors(count):
            in_parallel(work, range(items))
        assert (max(most), started.call_count) == (expected, expected)

    @pytest.mark.parametrize(("items", "count"), [(1, 8), (5, 1), (0, 8)])
    def test_one_item_or_one_processor_needs_no_thread(self, items: int, count: int) -> None:
        seen: list[tuple[int, int]] = []
        with processors(count):
            in_parallel(lambda item: seen.append((item, get_ident())), range(items))
        assert seen == [(item, get_ident()) for item in range(items)]

    def test_the_processors_are_those_that_this_process_may_use(self) -> None:
        def look() -> bool:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            seen: list[int] = []
            in_parallel(lambda item: seen.append(get_ident()), range(3))
            return seen == [get_ident()] * 3

        assert in_child(look)

    def test_two_threads_that_end_together_both_end_well(self) -> None:
        """Each wakes the one that waits, who sees them both when they have."""

        class Lock:
            def __init__(self) -> None:
                self.releases = 0
                self.both = threading.Event()

            def acquire(self, timeout: float = 0) -> bool:
                return not timeout or self.both.wait(PATIENCE)

            def locked(self) -> bool:
                return True  # as long as the other has not released it

            def release(self) -> None:
                self.releases += 1
                if self.releases > 1:
                    self.both.set()
                    raise RuntimeError("release unlocked lock")

        failures: list[object] = []
        with (
            mock.patch.object(parallel, "allocate_lock", Lock),
            mock.patch.object(sys, "unraisablehook", failures.append),
            processors(2),
        ):
            in_parallel(lambda item: None, range(2))
        assert failures == []


class TestTheFirstException:
    """It lets no further item begin; `stop` gets the reason, calls under way are waited for, and it is raised."""

    @pytest.mark.parametrize("error", [ValueError("why"), KeyboardInterrupt(), SystemExit("x")], ids=repr)
    @pytest.mark.parametrize("count", [1, 3])
    def test_it_is_raised_and_nothing_begins_after_it(self, error: BaseException, count: int) -> None:
        """And not what the others raise because they were stopped."""
        begun: list[int] = []
        ended: list[int] = []
        reasons: list[str] = []
        begin = threading.Barrier(count)
        stopped = threading.Event()

        def stop(why: str) -> None:
            reasons.append(why)
            stopped.set()

        def work(item: int) -> None:
            begun.append(item)
            begin.wait(PATIENCE)
            if item == 0:
                raise error
            wait_for(stopped)
            ended.append(item)
            raise RuntimeError("stopped")

        with pytest.raises(type(error)) as caught, processors(count):
            in_parallel(work, range(10), stop)
        assert caught.value is error
        assert sorted(begun) == [0, *sorted(ended)] == list(range(count))
        interrupted = isinstance(error, KeyboardInterrupt)
        assert reasons[0] == ("interrupted" if interrupted else f"an error ended the run elsewhere: {error}")


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
class TestAnInterrupt:
    """Of the main thread: it lets those at work finish, and no other begin."""

    @pytest.mark.parametrize("last", [0, 1])
    def test_it_ends_the_run_when_all_at_work_have_ended(self, last: int) -> None:
        stopped = threading.Event()
        both = threading.Barrier(2)
        reasons: list[str] = []
        begun: list[int] = []
        ended: list[int] = []

        def stop(why: str) -> None:
            reasons.append(why)
            stopped.set()

        def work(item: int) -> None:
            begun.append(item)
            both.wait(PATIENCE)
            if item == 0:
                wait_until_the_main_thread_waits()
                os.kill(os.getpid(), signal.SIGINT)
            wait_for(stopped)
            if item == last:
                eventually(lambda: len(ended) == 1, "the other has ended")
                wait_until_the_main_thread_waits()
            ended.append(item)

        with pytest.raises(KeyboardInterrupt), processors(2):
            in_parallel(work, range(10), stop)
        assert reasons == ["interrupted"]
        assert sorted(begun) == sorted(ended) == [0, 1]

    def test_whoever_interrupts_again_waits_all_the_same(self) -> None:
        stopped = threading.Event()
        ended: list[int] = []

        def work(item: int) -> None:
            if item == 0:
                for _ in range(3):
                    wait_until_the_main_thread_waits()
                    os.kill(os.getpid(), signal.SIGINT)
                    wait_for(stopped)
                wait_until_the_main_thread_waits()
                ended.append(item)
            wait_for(stopped)

        with pytest.raises(KeyboardInterrupt), processors(2):
            in_parallel(work, range(10), lambda why: stopped.set())
        assert ended == [0]


class TestStartingThreads:
    """An error or an interrupt then is raised, and calls that are under way are waited for."""

    @pytest.mark.parametrize("error", [KernelError(errno.EAGAIN, "no thread"), KeyboardInterrupt()], ids=repr)
    @pytest.mark.parametrize("starts", [1, 2])
    def test_it_fails(self, error: BaseException, starts: int) -> None:
        """After the first thread was started; the second one may have been as well."""
        stopped, at_work = threading.Event(), threading.Event()
        calls: list[object] = []
        begun: list[int] = []
        ended: list[int] = []

        def failing(function: Callable[[], object]) -> None:
            calls.append(function)
            if len(calls) <= starts:
                start_thread(function)
            wait_for(at_work)
            if len(calls) == 2:
                raise error

        def work(item: int) -> None:
            begun.append(item)
            at_work.set()
            wait_for(stopped)
            wait_until_the_main_thread_waits()
            ended.append(item)

        with mock.patch.object(parallel, "start_thread", failing), pytest.raises(type(error)), processors(4):
            in_parallel(work, range(10), lambda why: stopped.set())
        assert len(calls) == 2
        assert sorted(begun) == sorted(ended)
        assert 0 in ended
        assert len(ended) <= starts

    def test_a_real_limit(self) -> None:
        """There is no room for a thread's stack."""

        def look() -> tuple[int | None, str, list[str], list[int]]:
            stack = 256 << 20
            threading.stack_size(stack)
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + stack // 2, resource.RLIM_INFINITY))
            seen: list[int] = []
            reasons: list[str] = []
            with mock.patch.object(os, "sched_getaffinity", return_value={0, 1}), pytest.raises(KernelError) as caught:
                in_parallel(seen.append, range(3), reasons.append)
            return caught.value.errno, str(caught.value), reasons, seen

        code, text, reasons, seen = in_child(look)
        assert (code, seen) == (errno.EAGAIN, [])
        assert "start a thread: can't start new thread (a limit on processes or memory)" in text
        assert reasons == [f"an error ended the run elsewhere: {text}"]
