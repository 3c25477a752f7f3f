"""Every input that has a problem against the engine in stepped time: nothing new is commanded while it lasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stepped.running import QUICK, moving, told, violations
from stepped.simulated_cell import Cell

from sqap_vla_ros.control.conditions import Input

LONGEST_S = 0.8  # max_open_loop_s
SHOWN_S = 1.6
ENGINE_S = 0.02  # a turn of the engine


def switched(**values: Any) -> Callable[[Cell], None]:
    """Return a fault that turns switches of the cell."""

    def begin(cell: Cell) -> None:
        for name, value in values.items():
            setattr(cell.switches, name, value)

    return begin


def dark(image: np.ndarray) -> np.ndarray:
    return np.zeros_like(image)


def unnamed_joint(names: list[str], values: list[float]) -> tuple[list[str], list[float]]:
    return [*names[:-1], "other"], values


def rival(cell: Cell) -> None:
    """Somebody else publishes on the topic of the commands."""
    cell.loop._publishers.look = lambda: {Input.COMMANDS: "somebody else commands"}  # type: ignore[method-assign]


def standing_time(cell: Cell) -> None:
    """Simulated time stands."""
    cell.loop.inputs._clock.problem = lambda *_: "ROS time has stood still"  # type: ignore[method-assign]


FAULTS: tuple[tuple[Input, str, Callable[[Cell], None], str], ...] = (
    (Input.IMAGE, "pose", switched(image_silent=True), "no new image for"),
    (Input.IMAGE, "twist", switched(image_age_s=0.8), "the image is stale"),
    (Input.IMAGE, "joint", switched(image_age_s=-0.3), "the image is stamped 0.30 s in the future"),
    (Input.IMAGE, "pose", switched(image_age_s=-3600.0), "the image is stamped 3600.00 s in the future"),
    (Input.IMAGE, "twist", switched(image_stamp=0), "images are stamped zero"),
    (Input.IMAGE, "joint", switched(image_edit=dark), "the image is black"),
    (Input.CAMERA_INFO, "pose", switched(info_silent=True), "camera_info"),
    (Input.CAMERA_INFO, "twist", switched(focal=0.5), "fx and fy must be in pixels"),
    (Input.TF, "joint", switched(tf_silent=True), "no transform base_link <- tool0"),
    (Input.TF, "pose", switched(tf_age_s=1.5), "no transform base_link <- tool0"),
    (Input.TF, "twist", switched(tf_age_s=-0.3), "the tool's transform is stamped 0.3 s in the future"),
    (Input.JOINT_STATES, "joint", switched(joints_silent=True), "joint_states are stale"),
    (Input.JOINT_STATES, "joint", switched(joints_age_s=2.0), "joint_states are stale"),
    (Input.JOINT_STATES, "joint", switched(joints_age_s=-0.3), "in the future: synchronise the clocks"),
    (Input.JOINT_STATES, "joint", switched(joints_edit=unnamed_joint), "joint_states"),
    (Input.WORKER, "joint", lambda cell: cell.worker.die(), "the worker process ended"),
    (Input.COMMANDS, "pose", rival, "somebody else commands"),
    (Input.CLOCK, "twist", standing_time, "ROS time has stood still"),
    (Input.SAFETY_STOP, "joint", lambda cell: cell.safety_stop(True), "safety_stop"),
)


def test_the_table_has_every_input_with_a_problem():
    assert {source for source, *_ in FAULTS} == set(Input) - {Input.CHUNK}  # a chunk is judged by itself


@pytest.mark.parametrize(("source", "mode", "begin", "words"), FAULTS)
def test_nothing_new_is_commanded_while_an_input_is_wrong(source, mode, begin, words):
    with Cell(mode, seed=6, parameters={**QUICK, "max_open_loop_s": LONGEST_S}) as cell:
        moving(cell, 0.8)
        cell.loop.inputs.observer.needs_projection = True  # as a policy with a token selection does
        begin(cell)
        accepted = _accepted_while_wrong(cell, SHOWN_S)
        assert words in told(cell)
        assert accepted == 0
        assert not cell.loop.executive.moving or cell.loop.executive.wrong_input() is None  # a worker is started again
        assert violations(cell) == []


def test_a_chunk_that_arrives_while_an_input_is_wrong_is_refused_and_what_moves_is_finished():
    with Cell("pose", seed=6, parameters=QUICK) as cell:
        moving(cell)
        cell.switches.latency_s = 0.3
        while cell.loop._in_flight is None:
            cell.run(ENGINE_S)
        cell.switches.tf_age_s = -0.3
        rejected = cell.loop.executive.counters.chunks_rejected
        cell.run(0.4)
        assert cell.loop.executive.counters.chunks_rejected == rejected + 1
        assert cell.loop.executive.moving
        reason = cell.loop.executive.state()[1]
        assert reason.startswith("finishing the current chunk: the tool's transform is stamped 0.3 s in the future")
        cell.switches.tf_age_s = 0.0
        cell.run(2.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.state()[1] == ""


def _accepted_while_wrong(cell: Cell, seconds: float) -> int:
    """Let time pass. Return how many motions were begun in turns that had found a problem of an input."""
    executive = cell.loop.executive
    accept, count = executive.accepted, 0

    def accepted(*values: Any, **named: Any) -> None:
        nonlocal count
        count += executive.wrong_input() is not None
        accept(*values, **named)

    executive.accepted = accepted  # type: ignore[method-assign]
    cell.run(seconds)
    return count


@pytest.mark.parametrize(
    ("mode", "fault"),
    [("joint", {"joints_silent": True}), ("pose", {"tf_silent": True}), ("twist", {"image_silent": True})],
)
def test_an_input_that_comes_and_goes_moves_the_arm_no_more_until_it_stays(mode, fault):
    limits = {"max_open_loop_s": 0.5, "joint_states_timeout_s": 0.2, "image_timeout_s": 0.3, "tf_timeout_s": 0.1}
    with Cell(mode, seed=6, parameters={**QUICK, **limits}) as cell:
        moving(cell, 0.8)
        for _ in range(6):
            switched(**fault)(cell)
            cell.run(1.0)
            switched(**dict.fromkeys(fault, False))(cell)
            cell.run(0.7)
        assert cell.loop.executive.counters.holds == 3
        assert "s: nothing moves until it was good for 1 s (0." in told(cell)
        cell.run(1.0)
        assert cell.loop.executive.moving
        assert cell.loop.executive.state()[1] == ""
        assert violations(cell) == []
