"""Executors of the study of late chunks: what stands still, and who has more time."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from sqap_vla_ros.contracts import ActionChunk
from sqap_vla_ros.evaluation.closed_loop.episodes import Execution
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.vocabulary import TaskFamily

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("late_chunks")


@pytest.fixture(scope="module")
def env():
    env = TabletopEnv()
    yield env
    env.close()


def along_x(step_m):
    deltas = np.tile([step_m, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], (16, 1))
    return ActionChunk(0, deltas, CONTROL_DT_S, deltas)


def test_a_stopped_arm_stands_for_the_wait_and_then_does_its_actions(study, env):
    run = study.stopped(1.21)(env, "visual_matching", TaskFamily.PICK, 2000, Execution(8))
    before = env.commanded_pose[0, 3]
    run.act(along_x(0.001))
    assert env.steps == 7 + 8  # 1.21 s are seven steps begun
    assert env.commanded_pose[0, 3] - before == pytest.approx(8 * 0.001, abs=1e-9)


@pytest.mark.parametrize(("way", "more"), [("path", 0), ("waited", 8), ("doubled", None)])
def test_a_limit_is_longer_by_the_first_wait_or_twice_as_long(study, env, way, more):
    execution = study.cells()[f"fp32_vm_{way}1.6"].execution
    run = study.WAYS[way].runs(env, "visual_matching", TaskFamily.PICK, 2000, execution)
    while not run.finished:
        run.act(along_x(0.0))
    limit = env.task.max_steps
    assert run.reason == "time"
    assert env.steps == limit + (limit if more is None else more)


def test_latencies_are_those_of_the_stored_runs_of_the_geometry(study):
    cells = study.latency_cells()
    assert cells["fp32_vm_7b_stop5.71_h16"].runs.wait_steps == 29
    assert cells["coverage_w4a8_full_vm_7b_path2.02"].execution.horizon == 11
    assert "fp32_vm_7b_path5.71" not in cells  # the arm has no plan for so long


def test_an_image_whenever_the_policy_is_free_leaves_as_many_actions_as_the_delay_has_steps(study):
    cells = study.cells()
    assert [cells[f"fp32_vm_free{delay}"].execution.horizon for delay in (0.2, 0.4, 0.8)] == [1, 2, 4]
    assert cells["fp32_va_averaged0.8"].execution.ensemble == "by_time"
    assert "fp32_vm_free1.6" not in cells  # eight actions, as by pose
    assert not {"fp32_vm_original0.4", "fp32_vm_path0.2"} & set(cells)
