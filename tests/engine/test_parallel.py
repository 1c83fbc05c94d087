"""Something done for each of many things, in as many threads as there are processors."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socklb import KernelError
from socklb.engine.parallel import in_parallel, start

from ..sockets import eventually, in_child

PATIENCE = 30  # seconds until a test that hangs fails instead


def with_processors(count: int, function: Callable[[], object]) -> None:
    """Call it as if there were so many; in the end no thread of it is left."""
    before = threading.active_count()
    try:
        with mock.patch.object(os, "sched_getaffinity", return_value=set(range(count))):
            function()
    finally:
        assert threading.active_count() == before


def wait_for(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def wait_until_the_main_thread_waits() -> None:
    """A signal that comes while it goes to sleep does not wake it: Python's handlers run when it is awake."""
    state = Path(f"/proc/self/task/{os.getpid()}/stat")
    time.sleep(0.02)
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "S", "the main thread waits")


class TestEach:
    """Several namespaces are walked at once, as many threads as processors."""

    @given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 4))
    def test_the_function_is_called_once_for_each_item(self, items: list[int], processors: int) -> None:
        seen: list[int] = []
        with_processors(processors, lambda: in_parallel(seen.append, iter(items)))
        assert Counter(seen) == Counter(items)

    @pytest.mark.parametrize("processors", [2, 3, 5])
    def test_so_many_at_once_as_there_are_processors(self, processors: int) -> None:
        all_at_work = threading.Barrier(processors)
        lock = threading.Lock()
        at_work, most = set(), 0

        def work(item: int) -> None:
            nonlocal most
            with lock:
                at_work.add(item)
                most = max(most, len(at_work))
            all_at_work.wait(PATIENCE)
            with lock:
                at_work.remove(item)

        with_processors(processors, lambda: in_parallel(work, range(4 * processors)))
        assert most == processors

    def test_no_more_threads_than_items(self) -> None:
        names: set[str] = set()
        both = threading.Barrier(2)

        def work(item: int) -> None:
            names.add(threading.current_thread().name)
            both.wait(PATIENCE)

        with mock.patch.object(threading.Thread, "start", autospec=True, side_effect=threading.Thread.start) as started:
            with_processors(8, lambda: in_parallel(work, range(2)))
        assert names == {"socklb 0", "socklb 1"}
        assert started.call_count == 2

    @pytest.mark.parametrize(("items", "processors"), [(1, 8), (5, 1), (0, 8)])
    def test_one_item_or_one_processor_needs_no_thread(self, items: int, processors: int) -> None:
        seen: list[tuple[int, threading.Thread]] = []

        def work(item: int) -> None:
            seen.append((item, threading.current_thread()))

        with_processors(processors, lambda: in_parallel(work, range(items)))
        assert seen == [(item, threading.current_thread()) for item in range(items)]

    def test_the_processors_are_those_that_this_process_may_use(self) -> None:
        """And not those that the machine has."""

        def look() -> list[bool]:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            seen: list[bool] = []
            in_parallel(lambda item: seen.append(threading.current_thread() is threading.main_thread()), range(3))
            return seen

        assert in_child(look) == [True] * 3


class TestTheFirstException:
    """It lets no further item begin; `stop` is told why, those at work are waited for, and it is raised."""

    @pytest.mark.parametrize("error", [ValueError("why"), KeyboardInterrupt(), SystemExit("x")], ids=repr)
    @pytest.mark.parametrize("processors", [1, 3])
    def test_it_is_raised_and_nothing_begins_after_it(self, error: BaseException, processors: int) -> None:
        begun: list[int] = []
        told: list[str] = []
        begin = threading.Barrier(processors)
        stopped = threading.Event()

        def stop(why: str) -> None:
            told.append(why)
            stopped.set()

        def work(item: int) -> None:
            begun.append(item)
            begin.wait(PATIENCE)
            if item == 0:
                raise error
            wait_for(stopped)

        with pytest.raises(type(error)) as caught:
            with_processors(processors, lambda: in_parallel(work, range(10), stop))
        assert caught.value is error
        assert sorted(begun) == list(range(processors))
        interrupted = isinstance(error, KeyboardInterrupt)
        assert told == ["interrupted" if interrupted else f"an error ended the run elsewhere: {error}"]

    def test_those_at_work_are_waited_for(self) -> None:
        stopped = threading.Event()
        done: list[int] = []

        def work(item: int) -> None:
            if item == 0:
                raise ValueError("why")
            wait_for(stopped)
            done.append(item)

        with pytest.raises(ValueError, match="why"):
            with_processors(2, lambda: in_parallel(work, range(2), lambda why: stopped.set()))
        assert done in ([1], [])  # [] if the second had not begun

    def test_what_the_others_raise_because_they_were_stopped_is_not_it(self) -> None:
        stopped = threading.Event()
        both = threading.Barrier(2)

        def work(item: int) -> None:
            both.wait(PATIENCE)
            if item == 0:
                raise ValueError("the reason")
            wait_for(stopped)
            raise RuntimeError("stopped")

        with pytest.raises(ValueError, match="the reason"):
            with_processors(2, lambda: in_parallel(work, range(2), lambda why: stopped.set()))


class TestAnInterrupt:
    """In the main thread: it lets those at work finish, and no other begin."""

    @pytest.mark.parametrize("times", range(5))
    def test_of_the_main_thread(self, times: int) -> None:
        stopped = threading.Event()
        both = threading.Barrier(2)
        told: list[str] = []
        begun: list[int] = []
        done: list[int] = []

        def stop(why: str) -> None:
            told.append(why)
            stopped.set()

        def work(item: int) -> None:
            begun.append(item)
            both.wait(PATIENCE)
            if item == 0:
                wait_until_the_main_thread_waits()
                os.kill(os.getpid(), signal.SIGINT)
            wait_for(stopped)
            if threading.current_thread().name == "socklb 0":
                time.sleep(0.1)  # the one that was waited for when the interrupt came
            done.append(item)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                with_processors(2, lambda: in_parallel(work, range(10), stop))
        finally:
            signal.signal(signal.SIGINT, before)
        assert told == ["interrupted"]
        assert sorted(begun) == sorted(done) == [0, 1]

    def test_whoever_interrupts_again_waits_all_the_same(self) -> None:
        stopped = threading.Event()
        done: list[int] = []

        def work(item: int) -> None:
            if item == 0:
                wait_until_the_main_thread_waits()
                os.kill(os.getpid(), signal.SIGINT)
                wait_for(stopped)
                wait_until_the_main_thread_waits()
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
                done.append(item)
            wait_for(stopped)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt):
                with_processors(2, lambda: in_parallel(work, range(10), lambda why: stopped.set()))
        finally:
            signal.signal(signal.SIGINT, before)
        assert done == [0]

    def test_while_a_thread_is_being_started(self) -> None:
        """It runs already, and is waited for as well."""
        usual = threading.Thread.start
        stopped = threading.Event()
        at_work = threading.Event()
        done: list[int] = []

        def interrupted(thread: threading.Thread) -> None:
            usual(thread)
            wait_for(at_work)
            raise KeyboardInterrupt

        def work(item: int) -> None:
            at_work.set()
            wait_for(stopped)
            time.sleep(0.02)
            done.append(item)

        with mock.patch.object(threading.Thread, "start", interrupted), pytest.raises(KeyboardInterrupt):
            with_processors(2, lambda: in_parallel(work, range(10), lambda why: stopped.set()))
        assert done == [0]


class TestNoThread:
    """Where there can be no more threads it is KernelError, and what was begun is finished."""

    def test_the_first(self) -> None:
        """A real limit: there is no room for a thread's stack."""

        def look() -> tuple[int | None, str, list[str], list[int]]:
            stack = 256 << 20
            threading.stack_size(stack)
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + stack // 2, resource.RLIM_INFINITY))
            seen: list[int] = []
            told: list[str] = []
            with mock.patch.object(os, "sched_getaffinity", return_value={0, 1}), pytest.raises(KernelError) as caught:
                in_parallel(seen.append, range(3), told.append)
            return caught.value.errno, str(caught.value), told, seen

        code, text, told, seen = in_child(look)
        assert (code, seen) == (errno.EAGAIN, [])
        assert "start a thread: can't start new thread (a limit on processes or memory)" in text
        assert told == [f"an error ended the run elsewhere: {text}"]

    def test_the_second(self) -> None:
        usual = threading.Thread.start
        stopped = threading.Event()
        calls: list[Any] = []
        begun: list[int] = []
        done: list[int] = []

        def only_one(thread: threading.Thread) -> None:
            calls.append(thread)
            if len(calls) > 1:
                raise RuntimeError("can't start new thread")
            usual(thread)

        def work(item: int) -> None:
            begun.append(item)
            wait_for(stopped)
            done.append(item)

        with mock.patch.object(threading.Thread, "start", only_one), pytest.raises(KernelError, match="start a thread"):
            with_processors(4, lambda: in_parallel(work, range(10), lambda why: stopped.set()))
        assert len(calls) == 2
        assert begun == done
        assert len(begun) <= 1

    def test_another_error_of_a_thread_is_not_taken_for_that(self) -> None:
        started = threading.Thread(target=lambda: None)
        start(started)
        started.join()
        with mock.patch.object(threading.Thread, "start", side_effect=MemoryError), pytest.raises(MemoryError):
            start(threading.Thread(target=lambda: None))
