"""The study of committed prefixes: what is drawn, what a label is, and what is trained."""

import copy
import dataclasses
import functools
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.sampling.continuing import Past, Replace, find_continuation, sample_on
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.simulation.environment import WORKSPACE_M, TabletopEnv
from sqap_vla_ros.training.labels import sensible_tasks

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("committed_prefixes")


@pytest.fixture
def drawn(study):
    return importlib.import_module("committed_prefixes_data")


def test_a_label_repeats_its_prefix_and_kinds_differ(study, drawn):
    env = TabletopEnv()
    env.reset(1_700_000_000, "move_near")
    own = np.tile([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (16, 1))
    asked = sensible_tasks(env.world)[:3]
    found = drawn.labels(env, asked, own, np.random.default_rng(0))
    assert found["chunk"].shape == (3, len(study.KINDS), 16, 7)
    assert found["expert"].shape == (3, 16, 7)
    for k in range(3):
        for kind, name in enumerate(study.KINDS):
            count = found["committed"][k, kind]
            assert 1 <= count <= drawn.LONGEST
            first = found["chunk"][k, kind, :count]
            assert (first == own[:count].astype(np.float32)).all() == (name == study.OWN)
            if name != drawn.OTHER:  # two instructions may ask for the same thing first
                assert np.abs(first - found["expert"][k, :count]).max() > 1e-4, "nobody else's actions"


def test_prefixes_stay_in_the_workspace(drawn):
    env = TabletopEnv()
    env.reset(1_700_000_001, "pick")
    state = env.state
    down = np.tile([0.0, 0.0, -0.5, 0.0, 0.0, 0.0, 1.0], (8, 1))
    kept = drawn.inside(state, down)
    assert np.abs(kept[:, :3]).max() <= drawn.MAX_MOVE_M + 1e-12
    path = state.tool_xyz_m + kept[:, :3].cumsum(axis=0)
    assert (path >= np.array(WORKSPACE_M[0]) - 1e-12).all()
    assert path[-1, 2] == pytest.approx(WORKSPACE_M[0][2])
    assert (down[:, 2] == -0.5).all(), "what was given is not changed"


@pytest.fixture
def data(study):
    draw = torch.Generator().manual_seed(0)
    return study.Shards(
        cognition=torch.randn(5, 3, 192, generator=draw).half(),
        expert=torch.zeros(5, 3, 16, 7),
        chunk=torch.ones(5, 3, len(study.KINDS), 16, 7),
        committed=torch.randint(1, 9, (5, 3, len(study.KINDS)), generator=draw),
    )


def test_the_control_has_the_same_states_and_no_prefix(study, data):
    ours, control = (data.batch(200, np.random.default_rng(4), prefixes=prefixes) for prefixes in (True, False))
    assert torch.equal(ours[0], control[0])
    assert not control[1].any()
    assert not control[2].any()
    prefixed = ours[2][:, 0] > 0
    assert 0.6 < prefixed.float().mean() < 0.8
    assert (ours[1][prefixed] == 1).all()
    assert not ours[1][~prefixed].any()


def _keep(kept: list[torch.Tensor], x: torch.Tensor, timestep: int) -> torch.Tensor:
    kept.append(x)
    return x


def test_the_clean_head_sees_executed_actions_as_they_are(study):
    past = Past(torch.full((1, 16, 7), 0.25), (torch.arange(16) < 3).float().view(1, 16, 1))
    seen: dict[str, list[torch.Tensor]] = {study.NOISED: [], study.CLEAN: []}
    for head, kept in seen.items():
        with study.shown_to(head):
            predict = functools.partial(_keep, kept)
            sample_on("replace", Sampler(DiffusionConfig()), predict, torch.ones(1, 16, 7), [], past)
    assert all((x[:, :3] == 0.25).all() for x in seen[study.CLEAN])
    assert all((x[:, :3] != 0.25).all() for x in seen[study.NOISED])
    assert type(find_continuation("replace")) is Replace, "others are not changed"


def test_only_the_head_is_trained(study, data):
    policy = study.shipped()
    before = copy.deepcopy(policy.model.state_dict())
    config = dataclasses.replace(study.TRAINING, steps=2, batch=4)
    study.tune(policy, data, config, study.CLEAN)
    changed = {name for name, value in policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("action_head.") for name in changed)


def test_the_rest_that_undoes_a_displacement_compensates(study):
    behind = np.zeros((2, 16), bool)
    behind[:, 4:12] = True
    usual, made = np.zeros((2, 16, 7)), np.zeros((2, 16, 7))
    wrong = np.array([[0.03, 0.0, 0.0], [0.0, -0.02, 0.01]])
    made[:, 4, :3] = -0.5 * wrong
    made[:, 13, :3] = 1.0
    assert study._compensation(made, usual, behind, wrong) == pytest.approx(0.5)
