"""Files of finished replays that were damaged afterwards."""

import json
import shutil

import pytest
from fuzzing.unfinished import replayed_folder

from sqap_vla_ros.evaluation.replay.run import FRAMES, RUN, ReplayError, load_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return replayed_folder(tmp_path_factory.mktemp("replayed"), True)


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1},
        {"stamp_ns": 2**70},
        {"stamp_ns": "soon"},
        {"pose": [[1.0, 0.0], [0.0, 1.0]]},
        {"pose": [[float("nan")] * 4] * 4},
        {"pixel": [1.0]},
        {"deltas": [[0.0] * 6] * 4},
        {"deltas": [[float("inf")] * 7] * 4},
        {"normalized": None},
        {"timings_ms": {"total": "long"}},
        {"policy_ms": None},
        {"selection": {"indices": [0, 99], "reasons": [1, 1], "grid": [4, 4], "method": "", "prune_layer": 0}},
    ],
)
def test_a_frame_that_no_policy_answered_so_is_no_finished_replay(finished, tmp_path, changes):
    folder = shutil.copytree(finished, tmp_path / "copy")
    first, *others = (folder / FRAMES).read_text().splitlines()
    (folder / FRAMES).write_text("\n".join([json.dumps(json.loads(first) | changes), *others, ""]))
    with pytest.raises(ReplayError, match="holds no finished replay of fp32: delete it"):
        load_run(folder, "fp32")
    shutil.copy(finished / FRAMES, folder / FRAMES)
    assert len(load_run(folder, "fp32").records) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"peak_memory_mb": "much"},
        {"counters": {"images": 4}},
        {"sources": None},
        {"info": {"grid": 4}},
    ],
)
def test_a_description_of_another_form_is_no_finished_replay(finished, tmp_path, changes):
    folder = shutil.copytree(finished, tmp_path / "copy")
    summary = json.loads((folder / RUN).read_text())
    (folder / RUN).write_text(json.dumps(summary | changes))
    with pytest.raises(ReplayError, match="holds no finished replay of fp32: delete it"):
        load_run(folder, "fp32")


@pytest.mark.parametrize("name", ["info", "counters", "peak_memory_mb", "sources"])
def test_a_description_that_lacks_something_is_no_finished_replay(finished, tmp_path, name):
    folder = shutil.copytree(finished, tmp_path / "copy")
    summary = json.loads((folder / RUN).read_text())
    del summary[name]
    (folder / RUN).write_text(json.dumps(summary))
    with pytest.raises(ReplayError, match="holds no finished replay of fp32: delete it"):
        load_run(folder, "fp32")
