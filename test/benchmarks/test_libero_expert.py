"""The expert for LIBERO brings objects to the basket in its own model of the arm, from wherever it starts."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "outside"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


libero = loaded("libero_expert")

DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # fingers close along the world's y


def thing(position, size):
    half = np.array(size) / 2
    return libero.Thing(np.array(position), np.eye(3), -half, half)


def scene(tool_at=(-0.15, 0.0, 0.26), target_at=(-0.12, -0.24, 0.05), size=(0.08, 0.045, 0.1), others=()):
    tool = libero.Tool(np.array(tool_at), np.zeros(3), DOWN, np.zeros(3), 0.04)
    basket = thing((0.0, 0.25, 0.08), (0.17, 0.16, 0.14))
    return libero.Scene(tool, thing(target_at, size), basket, held=False, inside=False, others=others)


def carried_out(state, steps=200):
    for step in range(steps):
        state = libero._next(state, libero.expert(state), min(state.target.grasp()[2] / 2, 0.04))
        if state.inside:
            return step
    return None


@pytest.mark.parametrize("tool_at", [(-0.15, 0.0, 0.26), (0.1, -0.2, 0.05), (-0.12, -0.24, 0.3), (0.0, 0.3, 0.25)])
@pytest.mark.parametrize("size", [(0.08, 0.045, 0.03), (0.06, 0.06, 0.08), (0.05, 0.04, 0.14)])
def test_an_object_reaches_the_basket_from_anywhere(tool_at, size):
    start = scene(tool_at, (-0.12, -0.24, size[2] / 2), size)
    assert carried_out(start) is not None


def test_commands_stay_within_the_controllers_range():
    commands = libero.plan(scene(), horizon=150)
    assert np.linalg.norm(commands[:, :3], axis=1).max() <= libero.MAX_MOVE_M + 1e-9
    assert np.linalg.norm(commands[:, 3:6], axis=1).max() <= libero.MAX_TURN_RAD + 1e-9
    assert set(commands[:, 6]) == {0.0, 1.0}


def test_the_palm_stays_clear_of_a_tall_neighbour():
    flat = scene(target_at=(0.05, -0.1, 0.01), size=(0.08, 0.043, 0.018))
    beside = thing((0.1, -0.2, 0.038), (0.06, 0.06, 0.076))
    free = libero._off_centre(flat.target, (), 0.014)
    shifted = libero._off_centre(flat.target, (beside,), 0.014)
    assert free.tolist() == [0.0, 0.0]
    assert shifted[0] == pytest.approx(-0.015)  # as far as lacks, along the long side and away from it
    assert shifted[1] == pytest.approx(0.0)


def test_a_turned_object_is_grasped_across_its_narrow_side():
    turned = scene(size=(0.04, 0.08, 0.03))
    command = libero.expert(turned)
    assert abs(command[5]) > 0.1
    assert abs(libero.expert(scene())[5]) < 1e-9


def test_what_hangs_on_a_finger_above_the_basket_is_not_followed():
    state = scene(tool_at=(0.0, 0.25, 0.27), target_at=(0.01, 0.26, 0.24), size=(0.05, 0.05, 0.13))
    command = libero.expert(state)
    assert np.linalg.norm(command[:3]) < 1e-9
    assert command[6] == libero.OPEN


def test_things_that_trade_places_leave_none_empty_and_share_none(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # the module replaces both
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    world = loaded("libero_world")
    rng = np.random.default_rng(0)
    poses = np.hstack([[[0.12 * n, 0.0] for n in range(6)], rng.normal(size=(6, 5))])
    before, moved = poses.copy(), 0
    for _ in range(20):
        traded = world.traded(poses, rng)
        taken = np.round(traded[:, 0] / 0.12).astype(int)
        assert sorted(taken) == list(range(6))
        assert np.abs(traded[:, 0] - 0.12 * taken).max() <= 0.02
        assert (traded[:, 2:] == poses[:, 2:]).all()
        moved += (taken != np.arange(6)).sum()
    assert moved > 60
    assert (poses == before).all()
