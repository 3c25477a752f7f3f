"""The table of LIBERO: pairs are the same task and initial state; pictures for calibration keep their instruction."""

import importlib.util
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from sqap_vla_ros.compression.calibration import folder_observations

FILE = Path(__file__).parents[2] / "benchmarks" / "outside" / "libero_table.py"
SPEC = importlib.util.spec_from_file_location("libero_table", FILE)
libero_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(libero_table)


def test_methods_are_compared_on_the_episodes_that_both_ran():
    def records(recipe, outcomes):
        return [
            {"suite": "s", "recipe": recipe, "task": "t", "episode": n, "success": success, "steps": 9}
            for n, success in outcomes
        ]

    shown = libero_table.table(
        records("fp32", [(0, True), (1, True), (2, False)]) + records("sqap", [(2, True), (1, False)])
    ).splitlines()
    assert shown[2].startswith("| s | fp32 | 2 of 3 | 66.7 (")
    assert shown[3].startswith("| s | sqap | 1 of 2 | 50.0 (")
    assert "| +0.0 (" in shown[3]  # fp32 solved one of the two that sqap has run
    assert shown[3].endswith("| 1.000 |")


def test_pictures_to_calibrate_on_keep_what_was_asked(tmp_path):
    shard = tmp_path / "data" / "shard0000"
    shard.mkdir(parents=True)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"instructions": ["take one", "take two"]}))
    np.save(shard / "image.npy", np.arange(2, dtype=np.uint8).repeat(8 * 8 * 3).reshape(2, 8, 8, 3))
    np.save(shard / "instruction.npy", np.array([[0], [1]], np.int16))
    folder = libero_table.calibration(tmp_path / "data", tmp_path / "pictures")
    seen = folder_observations(folder, libero_table.CALIBRATION_PICTURES)
    assert len(seen) == libero_table.CALIBRATION_PICTURES
    assert {(int(o.image[0, 0, 0]), o.instruction) for o in seen} == {(0, "take one"), (1, "take two")}
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "dataset.json").write_text(json.dumps({"instructions": []}))
    with pytest.raises(SystemExit, match="no shards"):
        libero_table.calibration(empty, tmp_path / "more")


def recorded(folder, outcomes):
    """A database as vla-eval leaves it. outcomes: status of each episode of one task."""
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "recording-table.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE work_queue (done INTEGER)")
        connection.execute("CREATE TABLE episode_results (task_name, episode_id, status, steps)")
        connection.executemany("INSERT INTO work_queue VALUES (?)", [(1,)] * len(outcomes))
        rows = [("t", number, status, 9) for number, status in enumerate(outcomes)]
        connection.executemany("INSERT INTO episode_results VALUES (?, ?, ?, ?)", rows)


def test_rows_of_former_calls_stay_in_the_table_in_one_order(tmp_path):
    recorded(tmp_path / "libero_object_swap-fp32", ["fail", "fail"])
    recorded(tmp_path / "libero_object-sqap_w4a8", ["success", "success"])
    recorded(tmp_path / "libero_object-sqap", ["fail", "success"])
    recorded(tmp_path / "libero_object-fp32", ["success", "success"])
    shown = libero_table.write(tmp_path)
    rows = [line.split(" | ")[:2] for line in shown.splitlines()[2:]]
    assert rows == [
        ["| libero_object", "fp32"],
        ["| libero_object", "sqap"],
        ["| libero_object", "sqap_w4a8"],
        ["| libero_object_swap", "fp32"],
    ]
    assert "| -50.0 (" in shown
    assert len((tmp_path / "episodes.jsonl").read_text().splitlines()) == 8
    against = libero_table.write(tmp_path, "sqap").splitlines()
    assert "difference from sqap" in against[0]
    assert "| +50.0 (" in against[2]


def test_episodes_of_one_row_have_one_recipe_and_one_calibration(tmp_path, monkeypatch):
    pictures = libero_table.LIBERO_PICTURES
    for recipe in ("w4a4", "fastv"):
        libero_table.same_recipe(tmp_path, recipe, pictures)
        libero_table.same_recipe(tmp_path, recipe, pictures)
    monkeypatch.setattr(libero_table, "CALIBRATION_PICTURES", 8)
    with pytest.raises(SystemExit, match="another calibration"):
        libero_table.same_recipe(tmp_path, "w4a4", pictures)
    libero_table.same_recipe(tmp_path, "fastv", pictures)  # calibrates on none
    (tmp_path / "fastv.json").write_text('{"recipe": "of yesterday"}')
    with pytest.raises(SystemExit, match="another recipe"):
        libero_table.same_recipe(tmp_path, "fastv", pictures)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["libero_table.py", str(tmp_path / "nosuch.safetensors"), "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        libero_table.main()
    assert ended.value.code == 2
    assert "nosuch.safetensors is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("writes", "expected"),
    [("echo no suite >&2; exit 1", "no suite"), ("touch $3/camera_1.json; touch $3/camera_0.json", "libero.sh")],
)
def test_a_suite_without_one_camera_is_refused(tmp_path, writes, expected):
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{writes}\n")
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=expected):
        libero_table.camera_of("libero_10", tmp_path, tmp_path / "venv")
