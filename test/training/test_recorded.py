"""Demonstrations from another world: labels that are there are learned, those that are not are left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sqap_vla_ros.commands.train import _named_or
from sqap_vla_ros.policy.actions import ActionStatistics
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.shipped import SHIPPED
from sqap_vla_ros.training.batch import ReadOuts
from sqap_vla_ros.training.pipeline import (
    recorded,
    recorded_training,
    shards_in,
    starting_weights,
    train_on_recorded,
)
from sqap_vla_ros.training.recorded import DESCRIPTION, STATISTICS, RecordedDemonstrations, action_statistics
from sqap_vla_ros.training.train import Learner, TrainingConfig, new_model, train

FRAMES, LABELS = 3, 2
THINGS = ("milk", "butter", "basket", "hand")
DESCRIBED = {
    "name": "kitchen",
    "dt_s": 0.05,
    "instructions": ["pick up the milk", "pick up the butter"],
    "things": THINGS,
    "tool": "hand",
    "asked": [[0, 2], [1, -1]],
}


def written(folder, *, labels=True, **changed):
    """Write one shard and its description; return the folder."""
    rng = np.random.default_rng(0)
    shard = folder / "shard0000"
    shard.mkdir(parents=True)
    chunk = rng.uniform(-0.05, 0.05, (FRAMES, LABELS, 16, 7)).astype(np.float32)
    chunk[..., 6] = rng.integers(0, 2, chunk.shape[:-1])
    values = {
        "image": rng.integers(0, 256, (FRAMES, 224, 224, 3), dtype=np.uint8),
        "instruction": np.array([[0, 1], [1, 0], [0, 0]], np.int16),
        "chunk": chunk,
    }
    if labels:
        values["cover"] = rng.integers(1, 256, (FRAMES, 256, len(THINGS)), dtype=np.uint8)
        values["places"] = rng.normal(size=(FRAMES, len(THINGS), 3)).astype(np.float32)
        values["places"][0, 1] = np.nan  # the butter is not there
        values["state"] = rng.normal(size=(FRAMES, 2)).astype(np.float32)
    values.update(changed)
    for name, value in values.items():
        np.save(shard / f"{name}.npy", value)
    described = DESCRIBED if labels else {name: DESCRIBED[name] for name in ("name", "dt_s", "instructions")}
    (folder / DESCRIPTION).write_text(json.dumps(described))
    return folder


def read(folder) -> RecordedDemonstrations:
    return RecordedDemonstrations(folder, shards_in([folder]), micro_tokenizer())


def test_a_batch_says_what_the_shard_says(tmp_path):
    data = read(written(tmp_path))
    chunk = np.load(tmp_path / "shard0000" / "chunk.npy")
    assert data.read_outs == ReadOuts((2,), segments=4, place=3, pose=11, attention=True)
    batch = data.batch(np.array([0, 1]))
    physical = data.statistics.unnormalize(batch.chunk.numpy())
    inside = (chunk[:2] >= data.statistics.q01) & (chunk[:2] <= data.statistics.q99)
    np.testing.assert_allclose(physical[inside], chunk[:2][inside], atol=1e-6)
    assert batch.words[:, :, 0].tolist() == [[0, 1], [1, 0]]
    assert batch.looked[0].tolist() == [[1, 1, 1], [1, 1, 0]]  # the butter is brought nowhere
    # target, hand and goal of "pick up the butter" in the first frame: the butter's place and the goal are not known
    assert batch.posed[0, 1].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    assert torch.isfinite(batch.pose).all()
    tokenize = micro_tokenizer()
    for label, words in enumerate(DESCRIBED["instructions"]):
        length = int(batch.prompts.lengths[0, label])
        ids = [*batch.prompts.prefix.tolist(), *batch.prompts.own[0, label, :length].tolist()]
        assert ids == tokenize(words)


def test_what_fell_away_neither_sets_the_scale_nor_is_told(tmp_path):
    """A thing that a collision shot off is metres away, and would make centimetres among the others nothing."""
    rng = np.random.default_rng(1)
    frames = 200
    places = rng.normal(0.0, 0.1, (frames, len(THINGS), 3))
    places[..., 2] *= 0.2
    places[::10, 0] = (-9.0, 12.0, 0.0)  # the milk, every tenth frame
    changed = {
        "image": np.zeros((frames, 224, 224, 3), np.uint8),
        "instruction": np.tile(np.array([[0, 1]], np.int16), (frames, 1)),
        "chunk": np.zeros((frames, LABELS, 16, 7), np.float32),
        "cover": np.full((frames, 256, len(THINGS)), (9, 8, 7, 6), np.uint8),
        "places": places.astype(np.float32),
        "state": np.zeros((frames, 2), np.float32),
    }
    changed["cover"][:, ::2] = (6, 7, 8, 9)
    batch = read(written(tmp_path, **changed)).batch(np.arange(frames))
    assert batch.posed[::10, 0, :3].sum() == 0
    assert batch.posed[1::10, 0].min() == 1
    assert batch.placed[::10, 1].sum() == 0  # a patch that shows the milk
    target = batch.pose[1::10, 0, :3].numpy()
    assert 0.8 < target[:, :2].std() < 1.2
    assert target[:, 2].std() == pytest.approx(0.2, abs=0.06)  # of the same scale, so centimetres count alike
    assert batch.pose.abs().max() <= 4


def test_losses_are_those_that_have_labels(tmp_path):
    config = TrainingConfig(steps=1, batch=2)
    every, none = read(written(tmp_path / "labelled")), read(written(tmp_path / "plain", labels=False))
    for data, names in (
        (every, {"diffusion", "words", "segments", "place", "pose", "attention"}),
        (none, {"diffusion", "words"}),
    ):
        values = Learner(config, data.read_outs, "cpu").learn([data.batch(np.array([0, 1]))], 0)
        assert set(values) == names
        assert np.isfinite(list(values.values())).all()


def test_training_writes_a_policy_under_the_name_of_the_data(tmp_path):
    path = train(read(written(tmp_path / "data")), tmp_path, TrainingConfig(steps=1, batch=2), show=False)
    policy = load_checkpoint(path)
    assert path.stat().st_size <= 15e6
    assert policy.model.config.name == "kitchen"
    assert policy.statistics["kitchen"].dt_s == 0.05


def test_a_checkpoint_is_a_beginning_whose_read_outs_are_new(tmp_path):
    data = read(written(tmp_path / "data"))
    earlier = new_model(seed=5)
    policy = CogACTPolicy(earlier.to(torch.bfloat16), micro_tokenizer(), {"other": data.statistics})
    path = tmp_path / "other.safetensors"
    save_checkpoint(policy, path)
    learner, fresh = (Learner(TrainingConfig(steps=1, batch=2), data.read_outs, "cpu") for _ in range(2))
    learner.begin_with(path)
    for name, parameter in learner.model.named_parameters():
        assert torch.equal(parameter, earlier.get_parameter(name)), name
    for one, other in zip(learner.supervision.parameters(), fresh.supervision.parameters(), strict=True):
        assert torch.equal(one, other)
    before = [p.clone() for p in learner.averaged]
    assert torch.equal(before[0], next(earlier.parameters()).float())
    learner.learn([data.batch(np.array([0, 1]))], 0)  # the optimiser goes on from these, not from the random ones
    now = [p.detach().float() for p in learner.model.parameters()]
    moved = max(float((p - q).abs().max()) for p, q in zip(now, before, strict=False))
    assert 0 < moved < 1e-3


def test_the_shipped_policy_is_a_beginning_and_one_of_another_geometry_is_none(tmp_path):
    assert _named_or(Path("tabletop")) == starting_weights(SHIPPED["tabletop"].weights)
    small = CogACTPolicy(
        CogACT(MICRO), micro_tokenizer(), {"other": ActionStatistics(-np.ones(7), np.ones(7), np.arange(7) < 6, 0.05)}
    )
    path = tmp_path / "micro.safetensors"
    save_checkpoint(small, path)
    with pytest.raises(ValueError, match="another geometry"):
        starting_weights(path)
    with pytest.raises(ValueError, match="does not exist"):
        starting_weights(tmp_path / "nothing.safetensors")


def test_more_shards_do_not_change_the_scale_of_a_training_that_goes_on(tmp_path):
    folder = written(tmp_path)
    before = action_statistics(folder, shards_in([folder]))
    np.save(folder / "shard0000" / "chunk.npy", np.ones((FRAMES, LABELS, 16, 7), np.float32))
    assert action_statistics(folder, shards_in([folder])).q99.tolist() == before.q99.tolist()
    assert not before.mask[6]
    assert json.loads((folder / STATISTICS).read_text())["kitchen"]["dt_s"] == 0.05


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk": np.zeros((FRAMES, LABELS, 8, 7), np.float32)}, r"chunk has the shape \(3, 2, 8, 7\)"),
        ({"image": np.zeros((FRAMES, 64, 64, 3), np.uint8)}, r"images are \(64, 64, 3\) of uint8"),
        ({"instruction": np.full((FRAMES, LABELS), 2)}, "instructions must be numbers below 2"),
        ({"cover": np.zeros((FRAMES, 256, 2), np.uint8)}, r"cover has the shape \(3, 256, 2\)"),
        ({"chunk": np.full((FRAMES, LABELS, 16, 7), np.nan, np.float32)}, "must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, **changed))


def test_a_folder_without_a_description_or_with_a_wrong_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished shards"):
        read(tmp_path)
    folder = written(tmp_path / "data")
    (folder / DESCRIPTION).write_text(json.dumps({**DESCRIBED, "asked": [[0, 9], [1, 2]]}))
    with pytest.raises(ValueError, match="must name `things`"):
        read(folder)
    (folder / DESCRIPTION).write_text("[]")
    with pytest.raises(ValueError, match="does not describe demonstrations"):
        read(folder)
    (folder / DESCRIPTION).unlink()
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        read(folder)


def test_settings_scale():
    assert recorded_training(1e-6, 3, attention=False).steps == 1
    whole, again = (recorded_training(1.0, 0, attention=True, again=again) for again in (False, True))
    assert whole.loss.attention > 0
    assert (again.steps, again.rate) < (whole.steps, whole.rate)


def test_a_second_training_needs_a_first_and_takes_shards_of_several_folders(tmp_path):
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert len(recorded([one, two])) == 2 * FRAMES
    with pytest.raises(ValueError, match=r"state\.pt is missing"):
        train_on_recorded(tmp_path / "out", [one, two], recorded_training(1e-6, 0, attention=True), start=two)
    with pytest.raises(ValueError, match="nothing holds no finished shards"):
        train_on_recorded(tmp_path / "out", [one, tmp_path / "nothing"], recorded_training(1e-6, 0, attention=True))
