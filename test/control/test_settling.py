"""Inputs that come and go."""

from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.control.settling import Settling


def test_an_input_is_believed_at_once_until_it_held_the_arm_three_times_within_seconds():
    settling = Settling()
    for at_s in (0.0, 0.5, 1.0):
        assert settling.judge(Input.TF, None, at_s) is None
        assert settling.judge(Input.TF, "gone", at_s + 0.2) == "gone"
        settling.held([Input.TF], at_s + 0.2)
    assert not settling
    assert "3 holds for TF within 10 s" in settling.judge(Input.TF, None, 1.7)
    assert settling
    assert settling.judge(Input.IMAGE, None, 1.7) is None  # another input is not doubted
    assert settling.judge(Input.TF, "gone", 1.8) == "gone"
    assert not settling  # its own problem is told
    assert "(0.9 s so far; before: gone)" in settling.judge(Input.TF, None, 2.7)
    assert settling.judge(Input.TF, None, 2.81) is None
    assert not settling


def test_an_input_that_never_stays_good_moves_nothing_however_long_that_takes():
    settling = Settling()
    for tick in range(3, 120):
        problem = settling.judge(Input.TF, "gone" if tick % 2 else None, tick * 0.5)
        if tick < 8 and tick % 2:
            settling.held([Input.TF], tick * 0.5)
        assert problem is not None or tick < 8


def test_holds_that_are_long_ago_do_not_count():
    settling = Settling()
    for at_s in (0.0, 6.0, 12.0):
        settling.judge(Input.TF, "gone", at_s)
        settling.held([Input.TF], at_s)
    assert settling.judge(Input.TF, None, 12.1) is None


def test_an_input_that_holds_the_arm_again_soon_must_be_good_for_twice_as_long_each_time():
    settling = Settling()
    settling.judge(Input.TF, "gone", 0.0)
    settling.held([Input.TF] * 3, 0.0)
    now_s, needed = 0.0, []
    for _ in range(5):
        begin_s = now_s
        while settling.judge(Input.TF, None, now_s) is not None:
            now_s += 0.5
        needed.append(now_s - begin_s)
        settling.judge(Input.TF, "gone", now_s)
        settling.held([Input.TF], now_s)
    assert needed == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert settling.judge(Input.TF, None, now_s + 8.0) is None
    settling.judge(Input.TF, "gone", now_s + 60.0)
    settling.held([Input.TF], now_s + 60.0)
    assert settling.judge(Input.TF, None, now_s + 60.1) is None  # that was long ago
