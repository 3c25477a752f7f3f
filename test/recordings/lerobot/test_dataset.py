"""LeRobot datasets read back: frames, choices of features, and what is said of those that cannot be used."""

import io
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from places import ROOT
from tiny_datasets.factory import ACTION, CAMERA, FPS, LENGTHS, SIDE, TASKS, edit_info, picture, state, write_dataset

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.recordings.lerobot import pictures
from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import DatasetError, dataset_problem, is_dataset, read_layout
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec
from sqap_vla_ros.robot.interchange.simulator_camera import simulator_camera

REAL = ROOT / "test/recordings/lerobot/data"


def test_every_frame_comes_back(written):
    assert is_dataset(written)
    frames = list(DatasetFrames(written, DatasetSpec()))
    assert [frame.index for frame in frames] == list(range(sum(LENGTHS)))
    assert [frame.new_episode for frame in frames] == [n in (0, LENGTHS[0]) for n in range(sum(LENGTHS))]
    for number, frame in enumerate(frames):
        episode, at = (0, number) if number < LENGTHS[0] else (1, number - LENGTHS[0])
        assert frame.observation.instruction == TASKS[episode]
        assert frame.observation.base_from_tool[:3, 3] == pytest.approx(state(episode, at)[:3])
        assert np.diag(frame.observation.base_from_tool[:3, :3]) == pytest.approx([1, -1, -1])
        assert np.abs(frame.observation.image.astype(int) - picture(episode, at)).max() <= 3
        assert frame.commanded[:3, 3] == pytest.approx([0.01 * at, 0, 0])
        assert frame.opening == float(at < 3)
        assert "no camera" in frame.note
    steps = np.diff([frame.stamp_ns for frame in frames[: LENGTHS[0]]])
    assert np.abs(steps - NS_PER_S / FPS).max() < 1000  # time stamps are float32


def test_a_stride_keeps_what_was_commanded_in_between(written):
    frames = list(DatasetFrames(written, DatasetSpec(stride=4, episodes=(1,))))
    assert [frame.index - LENGTHS[0] for frame in frames] == [0, 4]
    assert frames[1].commanded[0, 3] == pytest.approx(0.04)
    assert np.abs(frames[1].observation.image.astype(int) - picture(1, 4)).max() <= 3


def test_a_camera_projects_the_tool(written):
    """A camera 1 m above the base that looks down: x goes up in the image, and half the field is 0.8 m at 0.8 m."""
    looking_down = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    camera = simulator_camera([0, 0, 1], looking_down, 90.0, SIDE, SIDE)
    first = next(iter(DatasetFrames(written, DatasetSpec(camera=camera))))
    centre, focal = (SIDE - 1) / 2, SIDE / 2
    assert first.observation.gripper_pixel == pytest.approx((centre, centre - focal * 0.3 / 0.8))
    assert first.note == ""
    assert first.camera is camera.model


def test_a_sample_decodes_only_what_it_needs(written, monkeypatch):
    asked = []
    real = pictures._from_film
    monkeypatch.setattr(pictures, "_from_film", lambda *args: asked.append(list(args[2])) or real(*args))
    found = DatasetFrames(written, DatasetSpec()).sample(3)
    assert asked == [[0, 5], [LENGTHS[0] + 4]]
    assert [int(each.image[0, 0, 0]) for each in found] == pytest.approx([40, 115, 200], abs=3)


def test_frames_far_apart_are_sought(written, monkeypatch):
    monkeypatch.setattr(pictures, "_LONGEST_SKIP", 1)
    for frame, wanted in zip(DatasetFrames(written, DatasetSpec(stride=2)), (0, 2, 4), strict=False):
        assert np.abs(frame.observation.image.astype(int) - picture(0, wanted)).max() <= 3


def test_pictures_may_stand_in_the_table(dataset):
    def png(episode, frame):
        buffer = io.BytesIO()
        Image.fromarray(picture(episode, frame)).save(buffer, format="png")
        return {"bytes": buffer.getvalue(), "path": None}

    path = dataset / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    cells = [png(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
    pq.write_table(table.append_column(CAMERA, pa.array(cells)), path, row_group_size=4)
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features[CAMERA]["dtype"] = "image"
    edit_info(dataset, features=features)
    frames = list(DatasetFrames(dataset, DatasetSpec()))
    assert (frames[7].observation.image == picture(1, 1)).all()


def test_version_2_1_is_read(dataset):
    """One file an episode, and the tables of tasks and episodes as lines of JSON."""
    table = pq.read_table(dataset / "data/chunk-000/file-000.parquet")
    film = dataset / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    for episode, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:episode])
        pq.write_table(table.slice(first, length), dataset / f"data/chunk-000/episode_{episode:06d}.parquet")
    target = dataset / f"videos/chunk-000/{CAMERA}/episode_000000.mp4"
    target.parent.mkdir(parents=True)
    shutil.copy(film, target)
    shutil.copy(film, target.with_name("episode_000001.mp4"))
    lines = [{"episode_index": e, "tasks": [t], "length": n} for e, (t, n) in enumerate(zip(TASKS, LENGTHS))]  # noqa: B905
    (dataset / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": number, "task": text} for number, text in enumerate(TASKS)]
    (dataset / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    edit_info(
        dataset,
        codebase_version="v2.1",
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    frames = list(DatasetFrames(dataset, DatasetSpec(episodes=(0,))))
    assert [frame.observation.instruction for frame in frames] == [TASKS[0]] * LENGTHS[0]
    assert DatasetFrames(dataset, DatasetSpec()).total == sum(LENGTHS)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_lerobot_wrote_is_read(kind):
    """lerobot 0.4.4 itself wrote the folders, films in AV1: see `make_real_datasets.py`."""
    source = DatasetFrames(REAL / kind, DatasetSpec())
    assert source.choice.form == "rpy"
    frames = list(source)
    assert [frame.observation.instruction for frame in frames] == [TASKS[0]] * 6 + [TASKS[1]] * 5
    for number, frame in enumerate(frames):
        at = number if number < 6 else number - 6
        assert frame.observation.base_from_tool[0, 3] == pytest.approx(0.3 + 0.01 * at, abs=1e-6)
        assert abs(int(frame.observation.image[32, 48, 1]) - (30 * at + 10)) <= (0 if kind == "image" else 12)
    assert frames[-1].commanded[:2, :2] == pytest.approx(
        np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]), abs=1e-6
    )


def faulty(root, fault):
    """Break a dataset in one way."""
    info = json.loads((root / "meta/info.json").read_text())
    features = info["features"]
    if fault == "version":
        edit_info(root, codebase_version="v1.6")
    elif fault == "fps":
        edit_info(root, fps=0)
    elif fault == "escape":
        edit_info(root, data_path="../{chunk_index}/{file_index}.parquet")
    elif fault == "json":
        (root / "meta/info.json").write_text("{")
    elif fault == "rows":
        path = root / "data/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(path).slice(0, 8), path)
    elif fault == "table":
        (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1nothing")
    elif fault == "film":
        (root / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_bytes(b"no film")
    elif fault == "no film":
        (root / f"videos/{CAMERA}/chunk-000/file-000.mp4").unlink()
    elif fault == "pointer":
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"
        (root / f"videos/{CAMERA}/chunk-000/file-000.mp4").write_text(pointer)
    elif fault == "key":
        edit_info(root, features={**features, "observation.images.other": features[CAMERA]})
    elif fault == "no fps":
        del info["fps"]
        (root / "meta/info.json").write_text(json.dumps(info))
    elif fault == "cameras":
        edit_info(root, features={**features, "observation.images.wrist": {**features[CAMERA], "dtype": "image"}})
    elif fault == "blind":
        edit_info(root, features={key: value for key, value in features.items() if key != CAMERA})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("version", "format v1.6; v3.0, v2.1, v2.0 are read"),
        ("fps", "fps must lie between"),
        ("escape", "outside of the dataset"),
        ("json", "is no JSON"),
        ("rows", "has 2 rows of episode 1, not 5"),
        ("table", "cannot be read"),
        ("film", "cannot be decoded"),
        ("pointer", "file-000.mp4 is a Git LFS pointer"),
        ("key", "has no column videos/observation.images.other/chunk_index"),
        ("no fps", "the description is damaged: 'fps' is missing"),
        ("no film", "is missing: was the dataset copied whole?"),
        ("cameras", "choose with --image-key among observation.images.top"),
        ("blind", "has no pictures; it has: observation.state"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(dataset, fault, said):
    faulty(dataset, fault)
    with pytest.raises(DatasetError, match=said) as error:
        list(DatasetFrames(dataset, DatasetSpec()))
    assert str(dataset) in str(error.value)


def test_a_part_of_a_dataset_is_told_from_a_bag(dataset):
    assert dataset_problem(dataset) is None
    for part in ("meta", "meta/info.json", "data/chunk-000/file-000.parquet"):
        assert f"is a part of the LeRobot dataset {dataset}" in dataset_problem(dataset / part)
    (dataset / "meta/info.json").unlink()
    assert "looks like a LeRobot dataset without meta/info.json" in dataset_problem(dataset)


@pytest.mark.parametrize("fault", ["no film", "pointer"])
def test_missing_files_are_seen_before_the_first_frame(dataset, fault):
    faulty(dataset, fault)
    with pytest.raises(DatasetError):
        DatasetFrames(dataset, DatasetSpec())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (DatasetSpec(image_key="front"), "--image-key 'front' is not the camera; there are: observation.images.top"),
        (DatasetSpec(state_key="pose"), "--state-key 'pose' is not the state; there are: observation.state"),
        (DatasetSpec(action_key="observation.state"), "has not the 7 elements"),
        (DatasetSpec(episodes=(7,)), "has no episode 7; it has 0 to 1"),
    ],
)
def test_a_wrong_choice_lists_the_choices(written, spec, said):
    with pytest.raises(DatasetError, match=said):
        DatasetFrames(written, spec)


def test_without_a_pose_nothing_is_guessed(dataset):
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    features["observation.state"]["names"] = [f"joint{n}" for n in range(8)]
    edit_info(dataset, features=features)
    frame = next(iter(DatasetFrames(dataset, DatasetSpec())))
    assert frame.observation.base_from_tool is None
    assert "say with --state how it begins" in frame.note
    frame = next(iter(DatasetFrames(dataset, DatasetSpec(state="quat_xyzw"))))
    assert frame.observation.base_from_tool is not None


def test_statistics_are_those_of_the_frames(written):
    stats = json.loads((written / "meta/stats.json").read_text())
    pixels = np.concatenate([[picture(e, f)[0, 0, 0] for f in range(n)] for e, n in enumerate(LENGTHS)]) / 255
    assert np.ravel(stats[CAMERA]["mean"]) == pytest.approx([pixels.mean()] * 3)
    assert np.ravel(stats[CAMERA]["std"]) == pytest.approx([pixels.std()] * 3)
    assert np.ravel(stats[CAMERA]["q50"]) == pytest.approx([np.median(pixels)] * 3)
    assert stats["action"]["max"] == pytest.approx([0.01, 0, 0, 0, 0, 0, 1])
    assert stats["action"]["count"] == [sum(LENGTHS)]
    assert len(read_layout(written).features["action"].names) == len(ACTION)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_datasets.factory.TASKS", (object(), "never"))
    with pytest.raises(Exception):  # noqa: B017, PT011
        write_dataset(tmp_path / "ds")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stride", [1, 4, 5, 100])
def test_the_frames_that_come_are_foretold(dataset, stride):
    """Each episode begins a stride anew."""
    frames = DatasetFrames(dataset, DatasetSpec(stride=stride))
    assert frames.strided == len(list(frames))
