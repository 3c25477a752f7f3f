"""The table of LIBERO: pairs are the same task and initial state; pictures for calibration keep their instruction."""

import importlib.util
import json
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
