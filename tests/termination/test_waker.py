"""Waiting ends when it should, whoever wakes it up and whenever; nothing is left open."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from socklb import BackendTable, KernelError, TerminationLoop
from socklb.termination.waker import Waker

from ..sockets import in_child


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.mark.usefixtures("nothing_left_open")
class TestWaker:
    def test_what_came_before_the_wait_ends_it_and_no_other(self) -> None:
        waker = Waker()
        for _ in range(100_000):  # more than the pipe holds
            waker.wake()
        assert (waker.wait(), waker.wait(0)) == (True, False)
        thread = threading.Thread(target=waker.wait)
        thread.start()
        waker.wake()
        thread.join()

    def test_a_program_that_has_signals_written_elsewhere_gets_them_all_the_same(self) -> None:
        def run() -> tuple[bytes, bool]:
            read, write = os.pipe2(os.O_NONBLOCK)
            signal.signal(signal.SIGUSR1, lambda *_: None)
            signal.set_wakeup_fd(write)
            with Waker().woken_by_signals():
                os.kill(os.getpid(), signal.SIGUSR1)
            return os.read(read, 9), signal.set_wakeup_fd(-1) == write

        assert in_child(run) == (bytes([signal.SIGUSR1]), True)

    def test_no_descriptor_for_it(self) -> None:
        def lacks() -> str:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            with pytest.raises(KernelError) as raised:
                Waker()
            return str(raised.value)

        assert "open a pipe: Too many open files" in in_child(lacks)


@pytest.mark.usefixtures("nothing_left_open")
class TestTheEndOfALoop:
    def test_a_stop_that_comes_too_late_writes_nowhere(self) -> None:
        loop = TerminationLoop(BackendTable())
        loop.stop()
        loop.run()
        read, write = os.pipe()  # with the numbers that the loop's pipe had
        loop.stop()
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)

    def test_a_signal_that_does_not_interrupt_the_wait_ends_it(self) -> None:
        """Another thread gets it, or it comes just as the wait begins; its handler runs in the main thread alone."""

        def run() -> tuple[list[int], int]:
            loop, missed = TerminationLoop(BackendTable()), list[int]()

            def send() -> None:
                time.sleep(0.2)  # by then it waits; if not, this proves nothing
                os.kill(os.getpid(), signal.SIGUSR1)

            def end() -> None:
                missed.append(1)
                loop.stop()

            limit = threading.Timer(20, end)
            signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
            limit.start()
            threading.Thread(target=send).start()
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])  # in this thread, and not in those
            loop.run()
            limit.cancel()
            return missed, signal.set_wakeup_fd(-1)

        assert in_child(run) == ([], -1)
