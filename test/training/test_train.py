"""Training: it learns, it resumes exactly, and what it writes is a policy."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.training.collection import COVER, IMAGE
from sqap_vla_ros.training.dataset import TabletopDemonstrations
from sqap_vla_ros.training.pipeline import SHIPPED, shards_in
from sqap_vla_ros.training.train import STATE, Learner, TrainingConfig, new_model, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> TabletopDemonstrations:
    """Four made-up frames, two instructions each."""
    folder = tmp_path_factory.mktemp("made_up") / "shard0000"
    folder.mkdir()
    rng = np.random.default_rng(0)
    frames, labels = 4, 2
    kinds = np.full((frames, 5, 2), -1, np.int8)
    kinds[:, 0], kinds[:, 1] = (0, 0), (3, 2)
    asked = np.array([[(0, 0, 1), (1, 1, 0)]] * frames, np.int8)
    scene = np.concatenate([rng.normal(0.3, 0.1, (frames, 9)), np.full((frames, 3), np.nan)], axis=1)
    chunks = rng.uniform(-0.05, 0.05, (frames, labels, 16, 7))
    chunks[..., 3:5] = 0.0
    chunks[..., 6] = rng.integers(0, 2, (frames, labels, 16))
    values = {
        "image": rng.integers(0, 256, (frames, IMAGE, IMAGE, 3), dtype=np.uint8),
        "cover": rng.integers(0, 256, (frames, 256, len(COVER)), dtype=np.uint8),
        "asked": asked,
        "chunk": chunks.astype(np.float32),
        "kinds": kinds,
        "objects": rng.normal(0.4, 0.1, (frames, 5, 4)).astype(np.float32),
        "scene": scene.astype(np.float32),
    }
    for name, value in values.items():
        np.save(folder / f"{name}.npy", value)
    return TabletopDemonstrations([folder], micro_tokenizer())


SHORT = TrainingConfig(steps=4, batch=2, rate=1e-3)


def test_losses_fall_on_a_batch_that_is_repeated(data):
    learner = Learner(dataclasses.replace(SHORT, steps=40, warmup=0.2), data.read_outs, "cpu")
    torch.manual_seed(0)
    batch = data.batch(np.array([0, 1]))
    history = [learner.learn([batch], step) for step in range(30)]
    for name, by in (("words", 0.5), ("attention", 0.05), ("segments", 0.03), ("diffusion", 0.1)):
        first, last = (np.mean([values[name] for values in part]) for part in (history[:3], history[-3:]))
        assert last < first * (1 - by), f"{name}: {first} -> {last}"


def test_an_interrupted_learner_goes_on_where_it_was(data, tmp_path):
    batch = data.batch(np.array([0, 1]))

    def step(learner: Learner, number: int) -> None:
        torch.manual_seed(number)
        learner.learn([batch], number)

    whole = Learner(SHORT, data.read_outs, "cpu")
    step(whole, 0)
    whole.save(tmp_path / STATE, 1)
    step(whole, 1)
    resumed = Learner(SHORT, data.read_outs, "cpu")
    assert resumed.restore(tmp_path / STATE) == 1
    step(resumed, 1)
    for one, other in zip(whole.averaged, resumed.averaged, strict=True):
        assert torch.equal(one, other)
    assert resumed.restore(tmp_path / "nothing.pt") == 0


def test_training_writes_a_policy_of_at_most_15_mb(data, tmp_path):
    path = train(data, tmp_path, SHORT, corrections=data, show=False)
    assert path.stat().st_size <= 15e6
    policy = load_checkpoint(path)
    assert policy.model.config.name == "tabletop"
    assert policy.statistics["tabletop"].dt_s == 0.2
    untrained = new_model(seed=0).bfloat16().float()
    same = [torch.equal(a, b) for a, b in zip(policy.model.parameters(), untrained.parameters(), strict=True)]
    assert not all(same)
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4
    # what is done is not done again
    before = path.read_bytes()
    train(data, tmp_path, SHORT, corrections=data, show=False)
    assert path.read_bytes() == before


def test_rate_warms_up_and_falls():
    config = TrainingConfig(steps=1000, rate=1.0, warmup=0.1, final_rate=0.2)
    rates = [config.rate_at(step) for step in range(1000)]
    assert np.argmax(rates) == pytest.approx(99, abs=2)
    assert rates[0] < 0.02
    assert rates[-1] == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match="steps and batch must be positive, got 0 and 16"):
        TrainingConfig(steps=0)


def test_variants_of_the_shipped_recipe():
    small = SHIPPED.scaled(0.001)
    assert small.collection.shards == 1
    assert small.imitation.steps == round(SHIPPED.imitation.steps * 0.001)
    control = SHIPPED.without_attention()
    assert {control.imitation.loss.attention, *(r.training.loss.attention for r in control.rounds)} == {0.0}
    other = SHIPPED.seeded(7)
    assert {other.collection.seed, other.imitation.seed, *(r.training.seed for r in other.rounds)} == {7}
    assert SHIPPED.imitation.loss.attention > 0


def test_only_whole_shards_count(tmp_path):
    for name in ("shard0001", "shard0000", "shard0002.partial"):
        (tmp_path / name).mkdir()
    assert [path.name for path in shards_in([tmp_path])] == ["shard0000", "shard0001"]
