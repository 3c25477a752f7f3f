"""Damaged LeRobot datasets: each is refused in a sentence that names the file and what is wrong in it."""

import io
import json
import subprocess

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="LeRobot datasets need pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from tiny_datasets.factory import CAMERA, FPS, LENGTHS, SIDE, edit_info, write_dataset

from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import DatasetError, read_layout
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
FILM = f"videos/{CAMERA}/chunk-000/file-000.mp4"
ROWS = sum(LENGTHS)


def put(dataset, file, column, values):
    """Replace a column of one of a dataset's tables; None drops it."""
    table = pq.read_table(dataset / file)
    at = table.schema.names.index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, pa.array(values))
    pq.write_table(table, dataset / file)


def put_feature(dataset, key, **changes):
    features = json.loads((dataset / "meta/info.json").read_text())["features"]
    edit_info(dataset, features={**features, key: {**features[key], **changes}})


@pytest.mark.parametrize(
    ("file", "column", "values", "said"),
    [
        (TASKS, "task", None, "tasks.parquet has no column with the tasks' texts"),
        (DATA, "timestamp", [np.nan] * ROWS, "timestamp of episode 0 must be a finite number in every row"),
        (DATA, "timestamp", [None] * ROWS, "timestamp of episode 0 must be a finite number in every row"),
        (DATA, "timestamp", [0.0] * ROWS, "timestamp of episode 0 must increase: row 1 has 0 s after 0 s"),
        (DATA, "timestamp", [1e30] * ROWS, "timestamp of episode 0 must lie between 0 and 1e.09 s"),
        (DATA, "task_index", pa.array([None] * ROWS, pa.int64()), "task_index of episode 0 must be a finite number"),
        (DATA, "index", [str(n) for n in range(ROWS)], "index must be a whole number in every row"),
        (DATA, "observation.state", [[0.0] * (n % 8) for n in range(ROWS)], "must be 8 finite numbers a frame"),
        (EPISODES, "data/chunk_index", pa.array([None, 0], pa.int64()), "data/chunk_index must be a whole number"),
        (EPISODES, "length", [10**15, 5], "rows of episode 0, not 1000000000000000"),
        (EPISODES, "episode_index", [0, 0], "episode 0 occurs twice"),
        (EPISODES, f"videos/{CAMERA}/from_timestamp", [np.nan, 1.2], "from_timestamp of episode 0 must be seconds"),
    ],
)
def test_a_damaged_table_is_refused(dataset, file, column, values, said):
    put(dataset, file, column, values)
    with pytest.raises(DatasetError, match=said) as error:
        list(DatasetFrames(dataset, DatasetSpec()))
    assert str(dataset) in str(error.value)


def test_a_dataset_whose_episodes_are_missing_was_not_copied_whole(dataset):
    (dataset / EPISODES).unlink()
    with pytest.raises(
        DatasetError, match=r"meta/episodes/chunk-\*/file-\*\.parquet is missing: was .* copied whole\?"
    ):
        read_layout(dataset)
    edit_info(dataset, total_episodes=0)
    with pytest.raises(DatasetError, match=r"has no episodes$"):
        read_layout(dataset)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": None}, "features must be a JSON object, got null"),
        ({"features": {CAMERA: None}}, f"feature {CAMERA} must be a JSON object, got null"),
        ({"features": {CAMERA: {"dtype": "video", "shape": [1e999]}}}, "cannot convert float infinity to integer"),
        ({"data_path": "data/{chunk_index:03z}"}, "cannot be filled in with {chunk_index}, {file_index}"),
        ({"data_path": "data/{chunk_index:99999999999d}"}, "cannot be filled in with {chunk_index}, {file_index}"),
        ({"data_path": "data/{chunk_index:{file_index}d}"}, "cannot be filled in with {chunk_index}, {file_index}"),
        ({"data_path": "data/{chunk_index.__class__}"}, "cannot be filled in with {chunk_index}, {file_index}"),
        ({"data_path": "data/{nope}.parquet"}, "cannot be filled in with {chunk_index}, {file_index}"),
    ],
)
def test_a_damaged_description_is_refused(dataset, changes, said):
    edit_info(dataset, **changes)
    with pytest.raises(DatasetError, match=said):
        DatasetFrames(dataset, DatasetSpec())


@pytest.mark.parametrize(
    ("chunks_size", "length", "said"),
    [(0, 3, "chunks_size must be at least 1"), ("x", 3, "chunks_size must be"), (1000, 1e30, "length must be a whole")],
)
def test_a_damaged_description_of_version_2_is_refused(tmp_path, chunks_size, length, said):
    (tmp_path / "meta").mkdir()
    info = {"codebase_version": "v2.1", "fps": 5, "features": {}, "chunks_size": chunks_size}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    (tmp_path / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "push"}))
    episode = {"episode_index": 0, "tasks": ["push"], "length": length}
    (tmp_path / "meta/episodes.jsonl").write_text(json.dumps(episode))
    with pytest.raises(DatasetError, match=said):
        read_layout(tmp_path)


@pytest.mark.parametrize("names", [{"motors": ["x", "y"], "gripper": "open"}, [["x", "y", "open"]]])
def test_names_may_be_grouped(dataset, names):
    put_feature(dataset, "action", names=names)
    assert str(DatasetFrames(dataset, DatasetSpec()).layout.features["action"]) == "action [float32 7: x, y, open]"


def test_a_byte_order_mark_is_no_fault(dataset):
    info = dataset / "meta/info.json"
    info.write_bytes(b"\xef\xbb\xbf" + info.read_bytes())
    assert DatasetFrames(dataset, DatasetSpec()).total == ROWS


def test_pictures_that_the_table_lacks_are_missed_at_once(dataset):
    put_feature(dataset, CAMERA, dtype="image")
    with pytest.raises(DatasetError, match=f"has no column {CAMERA}, which meta/info.json speaks of"):
        DatasetFrames(dataset, DatasetSpec())


@pytest.mark.parametrize("key", ["video.is_depth_map", "is_depth_map"])
def test_depth_maps_are_no_colour_pictures(dataset, key):
    put_feature(dataset, CAMERA, info={key: True})
    with pytest.raises(DatasetError, match=rf"has no pictures; it has: {CAMERA} \[depth maps\]"):
        DatasetFrames(dataset, DatasetSpec())
    with pytest.raises(DatasetError, match="is not the camera; there are: none"):
        DatasetFrames(dataset, DatasetSpec(image_key=CAMERA))


def test_a_task_without_a_text_is_no_instruction(dataset):
    put(dataset, TASKS, "task", pa.array([None, None], pa.string()))
    frames = list(DatasetFrames(dataset, DatasetSpec()))
    assert all(frame.observation is None and "the instruction is empty" in frame.problem for frame in frames)
    assert next(iter(DatasetFrames(dataset, DatasetSpec(instruction="push")))).observation.instruction == "push"


def test_a_damaged_film_is_refused(tmp_path, monkeypatch):
    """ffmpeg fills in what it cannot decode and goes on, unless it is told not to."""
    from tiny_datasets import factory

    noise = np.random.default_rng(0).integers(0, 256, (ROWS, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(factory, "picture", lambda episode, frame: noise[episode * LENGTHS[0] + frame])
    dataset = write_dataset(tmp_path / "noise")
    assert len(list(DatasetFrames(dataset, DatasetSpec()))) == ROWS
    data = bytearray((dataset / FILM).read_bytes())
    begin = data.find(b"mdat")
    middle = slice(begin + len(data) // 3, begin + len(data) // 3 + 2000)
    data[middle] = bytes(2000)
    (dataset / FILM).write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot be decoded|is damaged at frame"):
        list(DatasetFrames(dataset, DatasetSpec()))


def film(path, levels, rate, *how):
    """Write a film of grey pictures."""
    size = (64, 48)
    pixels = b"".join(np.full((size[1], size[0], 3), level, np.uint8).tobytes() for level in levels)
    command = [get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48"]
    command += ["-r", str(rate), "-i", "-", "-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", *how, str(path)]
    subprocess.run(command, input=pixels, check=True)


LEVELS = [20 * n for n in range(ROWS)]
UNEVEN = ["-vf", f"setpts=(N+3*gt(N\\,{LENGTHS[0] - 1}))/{FPS}/TB", "-fps_mode", "vfr"]


@pytest.mark.parametrize(
    ("shown", "rate", "how", "begin_s"),
    [
        (LEVELS, FPS, [], LENGTHS[0] / FPS),
        (LEVELS, FPS, ["-bf", "3", "-g", "50"], LENGTHS[0] / FPS),
        ([level for level in LEVELS for _ in range(3)], 3 * FPS, [], LENGTHS[0] / FPS),
        (LEVELS, FPS, UNEVEN, (LENGTHS[0] + 3) / FPS),
    ],
    ids=["as the rows", "coded out of order", "thrice the rate", "a pause between the episodes"],
)
def test_a_films_frames_are_taken_by_their_times(dataset, shown, rate, how, begin_s):
    film(dataset / FILM, shown, rate, *how)
    put(dataset, EPISODES, f"videos/{CAMERA}/from_timestamp", [0.0, begin_s])
    seen = [int(frame.observation.image[24, 32, 0]) for frame in DatasetFrames(dataset, DatasetSpec())]
    np.testing.assert_allclose(seen, LEVELS, atol=3)
    picked = [int(one.image[24, 32, 0]) for one in DatasetFrames(dataset, DatasetSpec()).sample(4)]
    np.testing.assert_allclose(picked, [LEVELS[n] for n in np.linspace(0, ROWS - 1, 4).astype(int)], atol=3)


@pytest.mark.parametrize(("rate", "how"), [(FPS / 2, []), (FPS, ["-output_ts_offset", "1.0"])])
def test_a_film_without_a_frame_for_a_row_is_refused(dataset, rate, how):
    film(dataset / FILM, LEVELS, rate, *how)
    with pytest.raises(DatasetError, match=r"has no frame at .* s, where the table has a row"):
        list(DatasetFrames(dataset, DatasetSpec()))


def put_pictures(dataset, data):
    """Put the same encoded picture into each row of the table."""
    table = pq.read_table(dataset / DATA)
    cells = pa.array([{"bytes": data, "path": None}] * ROWS)
    pq.write_table(table.append_column(CAMERA, cells), dataset / DATA)
    put_feature(dataset, CAMERA, dtype="image")


def encoded(picture, kind, **options):
    written = io.BytesIO()
    Image.fromarray(picture).save(written, kind, **options)
    return written.getvalue()


RAMP = np.tile(np.linspace(0, 65535, SIDE).astype(np.uint16), (SIDE, 1))
SIDEWAYS = Image.Exif()
SIDEWAYS[274] = 6  # the right side of what is stored is the bottom


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(RAMP, "PNG"), RAMP / 257.0),
        (encoded(RAMP / np.float32(65535), "TIFF"), RAMP / 257.0),
        (encoded((RAMP // 257).astype(np.uint8), "PNG", exif=SIDEWAYS), np.rot90(RAMP // 257, -1)),
    ],
    ids=["16 bits", "floating point", "turned"],
)
def test_pictures_in_a_table_are_read_as_files_are(dataset, data, expected):
    put_pictures(dataset, data)
    image = next(iter(DatasetFrames(dataset, DatasetSpec()))).observation.image
    np.testing.assert_allclose(image, np.repeat(expected[..., None], 3, axis=2), atol=0.51)


def test_a_damaged_jpeg_in_a_table_is_refused(dataset):
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    whole = encoded(noise, "JPEG")
    put_pictures(dataset, whole[: 2 * len(whole) // 3] + b"\xff\xd9")
    with pytest.raises(DatasetError, match=r"frame 0: the picture is damaged: what the jpeg holds ends before"):
        list(DatasetFrames(dataset, DatasetSpec()))
