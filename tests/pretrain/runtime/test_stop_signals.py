"""Ctrl-C reaches ranks that `surefoot train` has not started, as those of `torchrun`, by themselves."""

import os
import signal

import pytest

from pretrain.runtime.signals import StopSignals


def test_one_interrupt_asks_to_stop_and_another_ends(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals(aloud=True) as signals:
        signals.take_interrupts()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        assert "stopping after this step; Ctrl-C again ends" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):  # as before
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_another_signal_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """A launcher may pass on SIGTERM for what the terminal has sent to all as SIGINT."""
    with StopSignals() as signals:
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
