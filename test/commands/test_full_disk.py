"""A full or read-only disk: one sentence, and nothing half-written stays."""

import errno
import re
import resource
import shutil
from contextlib import contextmanager
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch.multiprocessing as mp

from sqap_vla_ros import cli
from sqap_vla_ros.films import mp4_writer
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.checkpoints.writing import WriteError, check_folder, described, write_text, written_aside
from sqap_vla_ros.policy.micro.policy import micro_policy


@contextmanager
def full_disk(largest):
    """Let no file grow beyond `largest` bytes: a write then fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    save_checkpoint(micro_policy(), path)
    return path


@pytest.mark.parametrize(
    ("largest", "command"),
    [
        (300_000, ["convert", "FILE", "x.safetensors"]),
        (300_000, ["convert", "FILE", "folder"]),
        (300_000, ["compress", "--checkpoint", "FILE", "--recipe", "rtn_w8a16", "--out", "x.safetensors"]),
        (30_000, ["compress", "--checkpoint", "FILE", "--recipe", "rtn_w8a16", "--out", "x.safetensors"]),
    ],
    ids=["one file", "folder", "smaller than the model", "smaller than a layer"],
)
def test_checkpoints_leave_nothing_behind(largest, command, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with full_disk(largest):
        assert cli.main([str(file) if word == "FILE" else word for word in command]) == 2
    shown = capsys.readouterr().err
    assert shown.count("cannot be written") == 1
    assert shown.count("is the disk full?") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_keeps_what_it_had(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with full_disk(1000), pytest.raises(WriteError, match=r"report\.json cannot be written"):
        write_text(path, "new" * 1000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_which_a_file_does_not_fit_is_named_once(tmp_path):
    def write():
        with written_aside(tmp_path / "rec") as partial:
            partial.mkdir()
            write_text(partial / "file", "new" * 1000)

    with full_disk(1000), pytest.raises(WriteError, match=r"rec cannot be written [^\n]*$") as error:
        write()
    assert str(error.value).count("is the disk full?") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_does_not_fit_is_removed(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def write():
        with mp4_writer(tmp_path / "film.mp4", 10.0) as append:
            for _ in range(5):
                append(picture)

    with full_disk(1000), pytest.raises(WriteError, match=r"film\.mp4 cannot be written [^\n]*$"):
        write()
    assert list(tmp_path.iterdir()) == []
    write()
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some space .*; the same command then goes on from"),
        (WriteError("x cannot be written"), "x cannot be written; the same command then goes on from here"),
        (OSError(errno.EROFS, "Read-only"), "the disk is read-only: choose another place$"),
        (ValueError("wrong"), "^wrong$"),
    ],
)
def test_a_command_that_resumes_says_so_where_the_disk_was_full(error, sentence):
    assert re.search(sentence, described(error, resumes=True))
    assert "goes on" not in described(error)


def test_a_full_disk_is_named_by_what_it_was_to_hold():
    silent = OSError(errno.ENOSPC, "No space left on device")
    assert described(silent, target="out/eval").endswith("(it was to hold out/eval)")


def test_a_recording_that_does_not_fit_is_removed(tmp_path, monkeypatch):
    from sqap_vla_ros.evaluation.demo import record_bag

    def record_episode(bag, env, now_ns, jpeg_quality):
        assert (tmp_path / "bag").is_dir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sqap_vla_ros.simulation.environment.TabletopEnv", MagicMock())
    monkeypatch.setattr(record_bag, "_record_episode", record_episode)
    with pytest.raises(OSError, match=r"bag cannot be written .* is the disk full"):
        record_bag.record_demo(tmp_path / "bag")
    assert list(tmp_path.iterdir()) == []


def test_demonstrations_that_do_not_fit_are_removed(tmp_path):
    from sqap_vla_ros.training.collection import CollectionConfig, _write

    with full_disk(1000), pytest.raises(OSError, match=r"shard0000 cannot be written .* is the disk full"):
        _write(lambda config, number: {"image": np.zeros(10_000)}, CollectionConfig(), 0, tmp_path / "shard0000")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_trains_and_finds_the_disk_full_is_one_sentence(tmp_path, monkeypatch):
    from sqap_vla_ros.training import pipeline

    trace = "Traceback:\n  ...\nsqap_vla_ros.policy.checkpoints.writing.WriteError: state.pt cannot be written (full)\n"
    processes = MagicMock(processes=[])
    processes.join.side_effect = mp.ProcessRaisedException(trace, 0, 1)
    monkeypatch.setattr(pipeline.mp, "spawn", lambda *_, **__: processes)
    with pytest.raises(WriteError, match=r"^state\.pt cannot be written \(full\)$"):
        pipeline._train(tmp_path, pipeline.SHIPPED.imitation, tmp_path, [], None, 1, "cpu", False, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full: free some space or choose another place (it was to hold standard output)",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/ro/out"),
            "the disk is read-only: choose another place (it was to hold /ro/out)",
        ),
    ],
)
def test_whatever_meets_a_disk_that_takes_nothing_says_what_helps(error, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sqap_vla_ros.commands.bops.run", MagicMock(side_effect=error))
    assert cli.main(["bops"]) == 2
    assert capsys.readouterr().err == f"sqap-vla: error: {sentence}\n"


@pytest.mark.parametrize(
    "command",
    [
        ["inspect-tokens", "--image", "nowhere.png", "--out", "a_file/x.png"],
        [
            "compress",
            "--checkpoint",
            "micro",
            "--recipe",
            "rtn_w8a16",
            "--out",
            "x.safetensors",
            "--report",
            "a_file/r",
        ],
    ],
)
def test_the_folder_of_a_picture_or_report_is_checked_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("no folder")
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_uncompressed", MagicMock(side_effect=AssertionError))
    assert cli.main(command) == 2
    assert "a_file is a file: choose another place" in capsys.readouterr().err
    check_folder(tmp_path / "yet" / "to" / "be" / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_a_folder_that_vanishes_is_not_a_full_disk(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def write():
        with written_aside(folder / "report.json") as partial:
            shutil.rmtree(folder)
            partial.write_text("{}")

    with pytest.raises(WriteError, match=r"report\.json cannot be written .*: its folder was removed meanwhile$"):
        write()
