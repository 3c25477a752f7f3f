"""A recording that was changed is another one: its replay is not given as that of the one before."""

import hashlib
import json
import os

import pytest
from bag_factory import write_bag

from sqap_vla_ros.evaluation.replay.identity import replay_identity, states_of
from sqap_vla_ros.evaluation.replay.sources import open_recording
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec
from sqap_vla_ros.serving.worker import WorkerConfig

WORKER = WorkerConfig("", factory="replay_doubles:plain", warmup=0)
DATASET_FILES = (
    "data/chunk-000/file-000.parquet",
    "videos/observation.images.top/chunk-000/file-000.mp4",
    "meta/episodes/chunk-000/file-000.parquet",
    "meta/tasks.parquet",
    "meta/info.json",
)


def identity(path, spec):
    with open_recording(path, spec) as source:
        return replay_identity(source, spec, WORKER, [])


@pytest.mark.parametrize("changed", DATASET_FILES)
def test_a_dataset_of_which_one_file_was_changed(tmp_path, changed):
    pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")
    from tiny_datasets.factory import write_dataset

    dataset = write_dataset(tmp_path / "tiny")
    before = identity(dataset, DatasetSpec())
    assert identity(dataset, DatasetSpec()) == before
    os.utime(dataset / changed, ns=(1, 1))
    assert identity(dataset, DatasetSpec()) != before


def test_files_that_are_not_read_do_not_count(tmp_path):
    pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")
    from tiny_datasets.factory import write_dataset

    dataset = write_dataset(tmp_path / "tiny")
    before = identity(dataset, DatasetSpec())
    other = dataset / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of a camera that is not used")
    assert identity(dataset, DatasetSpec()) == before


def test_replays_of_bags_are_still_called_as_they_were(tmp_path):
    bag, spec = write_bag(tmp_path / "bag", frames=2), ReplaySpec()
    with open_recording(bag, spec) as source:
        told = [*source.identity, repr(spec), repr(WORKER), states_of([bag, bag / "meta"]), [], ""]
    assert identity(bag, spec) == hashlib.sha256(json.dumps(told).encode()).hexdigest()
    fields = "dtype='', unnorm_key='', tokenizer='', dt=0.0, crop='', ema=False, cfg_scale=-1.0, ddim_steps=0, seed=0"
    rest = "load_timeout_s=900.0, prediction_timeout_s=30.0, batch_tolerance=0.0, continuation="
    assert f"{fields}, threads=0, warmup=0, {rest}" in repr(WORKER)
