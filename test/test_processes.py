"""Signals become exceptions, and the machine's other work is measured."""

import os
import signal

import pytest
from endings.interruptions import interrupted_within_a_lock

from sqap_vla_ros import processes
from sqap_vla_ros.evaluation.replay.tables import busy_warning


def end_myself(number):
    with processes.signals_raise():
        os.kill(os.getpid(), number)
        signal.pause()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_and_handlers_come_back(number):
    found = signal.signal(number, signal.SIG_DFL)  # ignored where the tests themselves run under nohup
    try:
        with pytest.raises(processes.Terminated) as ended:
            end_myself(number)
        assert ended.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, found)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with processes.signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, processes.Terminated)]
)
def test_an_interruption_between_two_steps_of_a_lock_is_still_one(number, expected):
    """What leaves the lock says that it is not held, and nothing of the signal."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pytest.raises(expected), processes.signals_raise():
            interrupted_within_a_lock(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_other_errors_are_not_taken_for_interruptions():
    first, second = ValueError("first"), RuntimeError("second")
    second.__context__, first.__context__ = first, second  # a circle, as libraries make them
    processes.raise_interruption(second)
    with pytest.raises(RuntimeError, match="second"), processes.signals_raise():
        raise second


def test_the_share_of_others_is_what_was_not_idle(monkeypatch):
    times = iter([(100, 1000), (150, 1200)])
    monkeypatch.setattr(processes, "_processor_times", lambda: next(times))
    assert processes.busy_share(0.0) == pytest.approx(0.75)
    monkeypatch.setattr(processes, "_processor_times", lambda: (0, 0))
    assert processes.busy_share(0.0) == 0.0


def test_latencies_of_a_busy_machine_carry_a_warning():
    assert busy_warning([{"inputs": {"machine_busy": 0.1}}, {"inputs": {}}]) == ""
    warning = busy_warning([{"inputs": {"machine_busy": 0.1}}, {"inputs": {"machine_busy": 0.82}}])
    assert warning.startswith("Other programs used 82% of this machine's processor time")
