"""What lies beside the weights of an own checkpoint: damaged or doubtful, it is said before anyone trusts it."""

import json

import numpy as np
import pytest
import torch
from published_writer import random_groups, write_folder

from sqap_vla_ros.cli import main
from sqap_vla_ros.policy.actions import ActionStatistics, statistics_notes
from sqap_vla_ros.policy.checkpoints import published, published_names
from sqap_vla_ros.policy.checkpoints.contents import CheckpointError
from sqap_vla_ros.policy.checkpoints.load import open_checkpoint, read_header
from sqap_vla_ros.policy.checkpoints.published import save_published
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.policy import micro_policy

TOKENIZER = micro_policy().tokenize.file
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
BOUNDS = {"q01": [-0.05] * 7, "q99": [0.05] * 6 + [1.0], "mask": [True] * 6 + [False]}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An own checkpoint of the micro geometry, which takes the place of the published one."""
    monkeypatch.setattr(published_names, "HEAD_SIZES", {"tiny": MICRO.head})
    monkeypatch.setattr(published, "_PUBLISHED", (MICRO,))
    folder = tmp_path / "mine"
    write_folder(folder, random_groups(MICRO))
    (folder / TOKENIZER[0]).write_bytes(TOKENIZER[1])
    return folder


def states(folder, entries):
    (folder / "dataset_statistics.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "there are no dataset statistics"),
        ({"x": 1}, "dataset statistics of 'x' lack action q01/q99"),
        ({"x": {"action": {"q01": [0.0] * 7}, "dt_s": 0.2}}, "dataset statistics of 'x' lack action q01/q99"),
        ({"x": {"action": BOUNDS, "dt_s": -0.1}}, "the dataset's time step must lie between 0.001 and 10 s, got -0.1"),
        ({"x": {"action": BOUNDS, "dt_s": 1e9}}, "the dataset's time step must lie between"),
        (
            {"x": {"action": BOUNDS, "dt_s": True}},
            "dataset statistics of 'x': dt_s must be seconds between actions, got True",
        ),
        ({"x": {"action": BOUNDS | {"mask": [True] * 6}, "dt_s": 0.2}}, "mask must have 7 values"),
        (
            {"x": {"action": BOUNDS | {"mask": ["true"] * 7}, "dt_s": 0.2}},
            "dataset statistics of 'x': mask must be a list of true and false",
        ),
        ({"x": {"action": {k: v * 2 for k, v in BOUNDS.items()}, "dt_s": 0.2}}, "another robot's statistics"),
    ],
)
def test_inspect_fails_where_no_command_can_use_the_statistics(mine, entries, said, capsys):
    states(mine, entries)
    assert main(["inspect", str(mine)]) == 1
    assert f"error: unusable: {said}" in capsys.readouterr().err.replace("action statistics: ", "").replace(
        "the action statistics of 'x' have 14 values, the action head has 7 channels: these are ", ""
    )


def test_a_period_that_is_not_stated_and_one_damaged_dataset_of_two_are_noted(mine, capsys):
    states(mine, {"mine": {"action": BOUNDS}, "other": {"action": {}}})
    assert main(["inspect", str(mine)]) == 0
    shown = capsys.readouterr().out
    assert "the control period of 'mine' is not stated: give it as dt_s (--dt)" in shown
    assert "dataset statistics of 'other' lack action" in shown


def test_inspect_fails_where_the_crop_is_none_that_there_is(tmp_path, capsys):
    save_published(micro_policy(), tmp_path / "own")
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace('"crop": "none"', '"crop": 7'))
    assert main(["inspect", str(tmp_path / "own")]) == 1
    assert "error: unusable: ImageTransform.crop must be 'none' or 'deployment', got '7'" in capsys.readouterr().err


def test_inspect_fails_where_the_tokenizer_is_none(mine, capsys):
    (mine / TOKENIZER[0]).write_text("{}")
    assert main(["inspect", str(mine)]) == 1
    assert f"unusable: {TOKENIZER[0]} is not a tokenizer that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [(lambda tensor: tensor.to(torch.int8), "int8"), (lambda tensor: tensor.to_sparse(), "sparse_coo float32")],
)
def test_weights_that_are_not_plain_numbers_are_seen_without_loading_them(mine, changed, said, capsys):

    (weights,) = (mine / "checkpoints").glob("*.pt")
    stored = torch.load(weights, weights_only=True)
    stored["model"]["projector"] = {k: changed(v) for k, v in stored["model"]["projector"].items()}
    torch.save(stored, weights)
    assert main(["inspect", str(mine)]) == 1
    shown = capsys.readouterr()
    assert "tensors that are not floating-point: " in shown.err
    assert "tensors that are not floating-point" not in shown.out  # one sentence, once
    with pytest.raises(CheckpointError, match=f"holds {said} numbers"):
        read_header(open_checkpoint(mine))


@pytest.mark.parametrize("name", ["dataset_statistics.json", "config.json", TOKENIZER[0]])
def test_pointers_and_empty_files_are_named(mine, name):
    (mine / name).write_text(LFS)
    with pytest.raises(CheckpointError, match=f"{name} is a Git LFS pointer"):
        open_checkpoint(mine)
    (mine / name).write_text("")
    with pytest.raises(CheckpointError, match=f"{name} is empty"):
        open_checkpoint(mine)


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "is empty"), (b"\x80\x05K\x01.", "torch.save writes a zip archive")]
)
def test_weights_that_torch_did_not_write(mine, content, said):
    (weights,) = (mine / "checkpoints").glob("*.pt")
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as error:
        open_checkpoint(mine)
    assert "mmap" not in str(error.value)


def test_a_mark_of_the_byte_order_and_an_empty_averaged_head_do_no_harm(mine, capsys):
    import torch

    (mine / "config.json").write_text((mine / "config.json").read_text(), encoding="utf-8-sig")
    (weights,) = (mine / "checkpoints").glob("*.pt")
    stored = torch.load(weights, weights_only=True)
    stored["model"]["ema_diffusion"] = {}
    torch.save(stored, weights)
    assert main(["inspect", str(mine)]) == 0
    assert "--ema" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="holds no averaged action head"):
        open_checkpoint(mine, ema=True)


def test_what_is_lacking_is_named_with_the_option_that_gives_it(mine):
    states(mine, {"a": {"action": BOUNDS, "dt_s": 0.1}, "b": {"action": BOUNDS, "dt_s": 0.1}})
    with pytest.raises(ValueError, match="choose one of them \\(--unnorm-key\\)"):
        read_header(open_checkpoint(mine))
    (mine / TOKENIZER[0]).unlink()
    with pytest.raises(ValueError, match="name it as tokenizer \\(--tokenizer\\)"):
        read_header(open_checkpoint(mine), unnorm_key="a")


def test_neither_file_nor_folder(capsys):
    assert main(["inspect", "/dev/null"]) == 2
    assert "/dev/null is neither a file nor a folder" in capsys.readouterr().err


@pytest.mark.parametrize("mask", [[1] * 6 + [0], [True] * 6 + [False]])
def test_a_mask_of_ones_and_zeros_is_one_of_true_and_false(mask):
    read = ActionStatistics.from_dataset("bridge_orig", {"action": BOUNDS | {"mask": mask}})
    np.testing.assert_array_equal(read.mask, [True] * 6 + [False])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask": [True, True, True, False, False, False, True]}, "have a mask that is true for the gripper"),
        ({"q01": [0.0] * 7, "q99": [0.0] * 7}, "have the same q01 and q99 (or min and max) everywhere"),
        ({}, None),
    ],
)
def test_doubtful_statistics_are_noted(changes, said):
    notes = statistics_notes("mine", {"action": BOUNDS | changes})
    assert len(notes) == (said is not None)
    assert all(f"statistics of 'mine' {said}" in note for note in notes)
