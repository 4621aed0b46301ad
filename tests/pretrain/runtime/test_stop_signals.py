"""Ctrl-C reaches ranks that `surefoot train` has not started, as those of `torchrun`, by themselves."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pretrain.runtime.signals import StopSignals

WAITING = """
import torch.distributed as dist
from pretrain.runtime.signals import StopSignals
with StopSignals(aloud=True) as signals:
    signals.take_interrupts()
    print("ready", flush=True)
    dist.TCPStore("127.0.0.1", 0, is_master=True).wait(["never"])
"""


@pytest.fixture(autouse=True)
def heard() -> None:
    """Tests of what becomes another program may have left SIGINT blocked in this thread: another one would get it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def test_one_interrupt_asks_to_stop() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        signals.take_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
    assert not any(thread.name == "interrupts" for thread in running_after_a_while())
    assert signal.getsignal(signal.SIGINT) is before


def running_after_a_while() -> list[threading.Thread]:
    for thread in threading.enumerate():
        if thread.name == "interrupts":
            thread.join(10)
    return threading.enumerate()


def test_interrupts_are_answered_while_a_library_waits() -> None:
    """A rank waits within gloo, for one that hangs: that is when people press Ctrl-C."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert "stopping after this step; Ctrl-C again ends" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_an_interrupt_after_another_signal_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A launcher may pass on SIGTERM for what the terminal has sent to all as SIGINT."""
    with StopSignals(aloud=True) as signals:
        signals.take_interrupts()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGTERM
    assert capfd.readouterr().err == ""


def test_ignored_interrupts_stay_so() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signals.take_interrupts()
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, previous)
