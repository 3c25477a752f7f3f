"""The demo's recording, film and report on a made-up run, and the whole demo once over real nodes."""

import argparse
import dataclasses
import json
import types

import cv2
import imageio.v2 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pytest
from safetensors.numpy import save_file

from sqap_vla_ros.commands import demo as command
from sqap_vla_ros.compression.files.kind import FORMAT
from sqap_vla_ros.contracts import ActionChunk, Reason, TokenSelection
from sqap_vla_ros.evaluation.demo import run as demo
from sqap_vla_ros.evaluation.demo.figures import run_figure
from sqap_vla_ros.evaluation.demo.film import Film
from sqap_vla_ros.evaluation.demo.report import summary_text, write_report
from sqap_vla_ros.evaluation.demo.selections import selections_of_all_images
from sqap_vla_ros.nodes.recorder.recording import JointCommand, RecordedChunk, RecordedEpisode, RecordedImage, Recording
from sqap_vla_ros.robot.camera import CameraModel, ToolProjection
from sqap_vla_ros.robot.trajectory import anchor_chunk

SECOND = 1_000_000_000
START = 1_763_000_000 * SECOND


def made_up_recording():
    """Two seconds: images at 10 Hz, chunks at 5 Hz, two joints that lag 10 mrad behind, the tool along x at 5 cm/s."""
    camera = CameraModel(
        160,
        120,
        np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]]),
        np.zeros(0),
        False,
        np.eye(3),
        np.zeros(3),
        np.inf,
    )
    optical_from_base = np.eye(4)
    optical_from_base[2, 3] = 1.0
    picture = np.full((120, 160, 3), 120, np.uint8)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    images = [
        RecordedImage(START + i * SECOND // 10, jpeg, optical_from_base, ToolProjection((80.0, 60.0)))
        for i in range(20)
    ]
    deltas = np.tile([0.01, 0, 0, 0, 0, 0.02, 1.0], (16, 1))
    selection = TokenSelection(
        np.arange(0, 256, 2, dtype=np.int32),
        np.array([Reason.ATTENTION] * 100 + [Reason.RING] * 28, np.uint8),
        (16, 16),
        "sqap",
        3,
        (8, 8),
    )
    chunks = []
    for i in range(10):
        stamp_ns = START + i * SECOND // 5
        anchor = np.eye(4)
        anchor[0, 3] = 0.01 * i
        chunk = ActionChunk(stamp_ns, deltas, 0.2, deltas)
        stages = {"vision": 10.0 + i, "decoder": 20.0, "total": 30.0 + i}
        chunks.append(
            RecordedChunk(chunk, anchor_chunk(deltas, anchor, stamp_ns, 0.2), selection, stages, 2.0 + i / 10, 0.05)
        )
    times = START + np.arange(100, dtype=np.int64) * SECOND // 50
    poses = np.tile(np.eye(4), (100, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 0.1, 100)
    ramp = np.arange(100) / 50
    positions = np.stack([ramp - 0.01, -ramp + 0.01, np.full(100, 0.04)], axis=1)
    command_times = START + np.array([0, 2 * SECOND], dtype=np.int64)
    tool_positions = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]])
    command = JointCommand(("b", "a"), START, command_times, np.array([[0.0, 0.0], [-2.0, 2.0]]), tool_positions)
    return Recording(
        episodes=[RecordedEpisode(START, START + 2 * SECOND, "push the <b>box</b>", START + 3 * SECOND // 2)],
        model={"checkpoint": "none", "recipe": "sqap", "parameters": 7, "image_size": 224},
        camera=camera,
        images=images,
        chunks=chunks,
        joint_names=("a", "b", "finger"),
        joint_times_ns=times,
        joint_positions=positions,
        tool_times_ns=times,
        tool_poses=poses,
        commands=[command],
        states=[(START, "WAITING", "no image"), (START + SECOND, "RUNNING", "")],
        counters={"chunks_published": 10, "chunks_rejected": 1},
    )


@pytest.fixture
def recording():
    return made_up_recording()


def test_commanded_joints_are_matched_by_name_and_interpolated(recording):
    times = START + np.array([-SECOND, 0, SECOND // 2, 2 * SECOND, 3 * SECOND], dtype=np.int64)
    wanted = recording.commanded_positions(times)
    assert np.isnan(wanted[[0, -1]]).all()  # before the first command and after the end
    np.testing.assert_allclose(wanted[1:-1, :2], [[0, 0], [0.5, -0.5], [2, -2]], atol=1e-9)
    assert np.isnan(wanted[:, 2]).all()  # nobody commanded the finger


def test_a_newer_trajectory_takes_over_from_its_first_point(recording):
    times = START + np.array([SECOND, SECOND + SECOND // 2, 2 * SECOND], dtype=np.int64)
    recording.commands.append(JointCommand(("a", "b"), START + SECOND, times, np.array([[1.0, -1], [5, -5], [9, -9]])))
    wanted = recording.commanded_positions(START + np.array([SECOND - 1, SECOND + SECOND // 4], dtype=np.int64))
    np.testing.assert_allclose(wanted[:, 0], [1.0, 3.0], atol=1e-6)


def two_episodes(recording):
    """The same run cut in two at one second: then the scene was set again and the arm jumped."""
    first, second = RecordedEpisode(START, START + SECOND - 1, "pick", START + SECOND // 2), START + SECOND
    recording.episodes = [first, RecordedEpisode(second, START + 2 * SECOND, "place")]
    recording.tool_poses[50:, 1, 3] = 0.5
    return recording


def test_a_command_ends_with_its_episode(recording):
    wanted = two_episodes(recording).commanded_positions(START + np.array([SECOND // 2, 3 * SECOND // 2]))
    assert np.isfinite(wanted[0, :2]).all()
    assert np.isnan(wanted[1]).all()


def test_episodes_are_told_apart(recording):
    summary = two_episodes(recording).summary()
    assert [episode["done_s"] for episode in summary["episodes"]] == [0.5, None]
    assert summary["instruction"] == "pick, then place"
    assert summary["tool_travel_m"] == pytest.approx(0.1, rel=0.02)  # without the jump in between
    text = summary_text(summary)
    assert "pick: done in 0.5 s" in text
    assert "place: not done in 1.0 s" in text
    assert "success       1 of 2" in text


def test_the_film_says_when_the_task_is_done(recording):
    before, after = (Film(recording).picture(recording.images[index]) for index in (14, 15))
    recording.episodes = [RecordedEpisode(START, START + 2 * SECOND, "push the <b>box</b>")]
    np.testing.assert_array_equal(before, Film(recording).picture(recording.images[14]))
    assert (after != Film(recording).picture(recording.images[15]))[:12].any()  # the caption


def test_the_summary_counts(recording):
    summary = recording.summary()
    assert summary["chunks"] == 10
    assert (summary["tokens_kept"], summary["tokens_total"]) == (128, 256)
    assert summary["kept_mean"] == {"attention": 100.0, "ring": 28.0}
    assert summary["latency_ms"]["vision"]["p50"] == pytest.approx(14.5)
    assert list(summary["latency_ms"]) == ["vision", "decoder", "total"]
    assert summary["tool_travel_m"] == pytest.approx(0.1)
    assert summary["image_to_chunk_ms"]["p95"] == pytest.approx(50.0)


def test_following_is_measured_on_the_joints_that_were_commanded(recording):
    assert recording.summary()["joint_error_rad"]["rms"] == pytest.approx(0.01, rel=1e-6)
    assert recording.summary()["joint_error_rad"]["max"] == pytest.approx(0.01, rel=1e-6)


def test_the_film_lasts_as_long_as_the_run(recording, tmp_path):
    Film(recording).write(tmp_path / "demo.mp4", show=False)
    reader = imageio.get_reader(tmp_path / "demo.mp4")
    assert reader.get_meta_data()["fps"] == pytest.approx(10.0, rel=0.01)
    assert reader.count_frames() == 20
    assert (tmp_path / "demo.webp").stat().st_size > 1000


def test_the_path_leads_from_the_tool_to_where_it_is_commanded(recording):
    # At 1 s the tool is commanded to be 0.1 m along x, at the end 0.2 m: 10 and 20 px to the right of the middle.
    picture = Film(recording).picture(recording.images[10])
    right, left = picture[58:63, 84:100].max(axis=-1), picture[58:63, 68:76].max(axis=-1)
    assert (right > 230).any()
    assert not (left > 230).all()
    assert picture[60, 99:102].min() > 200  # its end


def test_commanded_tool_positions_are_interpolated(recording):
    times = START + np.array([-SECOND, SECOND, 2 * SECOND], dtype=np.int64)
    wanted = recording.commanded_tool_positions(times)
    assert np.isnan(wanted[0]).all()
    np.testing.assert_allclose(wanted[1:, 0], [0.1, 0.2], atol=1e-9)


def shifted(selection, by):
    return dataclasses.replace(selection, indices=selection.indices + by)


def tinted(picture, u, v):
    """How far a pixel is from the grey of the made-up image."""
    return int(np.abs(picture[v, u].astype(int) - 120).max())


def test_a_picture_shows_the_selection_of_its_own_image(recording):
    image, older = recording.images[1], recording.chunks[0].selection
    own = Film(recording, {image.stamp_ns: shifted(older, 1)}).picture(image)
    of_older = Film(recording).picture(image)
    assert (own[30:90] != of_older[30:90]).any()
    recording.chunks[0] = dataclasses.replace(recording.chunks[0], selection=shifted(older, 1))
    assert tinted(own, 25, 33) > tinted(Film(recording).picture(image), 25, 33)  # the older one is fainter


def test_an_older_selection_fades_with_its_age_and_never_vanishes(recording):
    del recording.chunks[1:]
    ages = [tinted(Film(recording).picture(recording.images[index]), 25, 33) for index in (0, 4, 19)]
    assert ages[0] > ages[1] > ages[2] > 0


def test_the_first_pictures_have_tokens_though_their_image_is_older_than_the_answer_to_enable(recording):
    recording.episodes = [dataclasses.replace(recording.episodes[0], start_ns=START + SECOND // 20)]
    del recording.chunks[1:]
    assert tinted(Film(recording).picture(recording.images[1]), 25, 33) > 20


def test_tokens_of_an_episode_before_are_not_shown(recording):
    two_episodes(recording)
    del recording.chunks[5:]
    np.testing.assert_array_equal(Film(recording).picture(recording.images[10]), recording.images[10].rgb())


class FakePolicy:
    """Keeps the first tokens of whatever it sees. info.stateful: what the test wants."""

    def __init__(self, selection, stateful=False):
        self.info = types.SimpleNamespace(stateful=stateful)
        self.seen = []
        self._selection = selection

    def predict(self, observation, *, seed=0):
        self.seen.append((observation.stamp_ns, observation.instruction, observation.gripper_pixel, seed))
        return ActionChunk(observation.stamp_ns, np.zeros((16, 7)), 0.2, np.zeros((16, 7)), self._selection)


def test_the_policy_looks_at_the_images_that_the_node_did_not_predict_from(recording, monkeypatch):
    recording.chunks[0] = dataclasses.replace(
        recording.chunks[0], chunk=dataclasses.replace(recording.chunks[0].chunk, seed=5)
    )
    policy = FakePolicy(recording.chunks[0].selection)
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_policy", lambda *args, **kwargs: policy)
    selections = selections_of_all_images(recording, "tabletop", "sqap", show=False)
    assert sorted(selections) == [image.stamp_ns for image in recording.images]
    assert [seen[0] for seen in policy.seen] == [image.stamp_ns for image in recording.images[1::2]]
    assert policy.seen[0][1:] == ("push the <b>box</b>", (80.0, 60.0), 5)


@pytest.mark.parametrize(("total_ms", "stateful"), [(10_000.0, False), (30.0, True)])
def test_a_slow_policy_and_one_with_a_memory_are_not_asked_again(recording, monkeypatch, total_ms, stateful):
    recording.chunks[:] = [
        dataclasses.replace(chunk, stages_ms={**chunk.stages_ms, "total": total_ms}) for chunk in recording.chunks
    ]
    policy = FakePolicy(recording.chunks[0].selection, stateful)
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_policy", lambda *args, **kwargs: policy)
    selections = selections_of_all_images(recording, "tabletop", "sqap", show=False)
    assert sorted(selections) == [chunk.chunk.stamp_ns for chunk in recording.chunks]
    assert not policy.seen


def test_every_plan_is_drawn_when_there_are_few(recording):
    figure = run_figure(Film(recording))
    labels = [text.get_text() for sub in figure.subfigs for legend in sub.legends for text in legend.get_texts()]
    assert "planned: all 10 chunks" in labels
    recording.chunks *= 9
    assert "planned: 30 of 90 chunks" in [
        text.get_text()
        for sub in run_figure(Film(recording)).subfigs
        for legend in sub.legends
        for text in legend.get_texts()
    ]
    plt.close("all")


def test_the_report_needs_nothing_else(recording, tmp_path):
    summary = write_report(Film(recording), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "push the &lt;b&gt;box&lt;/b&gt;" in page
    assert "<b>box" not in page
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 2
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(summary))
    text = summary_text(summary)
    assert "10 published, 1 rejected" in text
    assert "128 of 256 kept: attention 100, ring 28" in text
    assert "10.0 mrad rms" in text


def arguments(tmp_path, **changed):
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    args = parser.parse_args(["demo", "--quiet", "--out", str(tmp_path)])
    return argparse.Namespace(**{**vars(args), **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instruction": "juggle the eggs"}, "no task is called 'juggle the eggs'; there are 'pick up the red cube'"),
        ({"instruction": "open the drawer", "task": "pick"}, "--task cannot be given beside it"),
        ({"episodes": 0}, "--episodes must be from 1 to 100, got 0"),
    ],
)
def test_a_wrong_task_is_refused_before_anything_starts(tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(demo, "_record", lambda args: pytest.fail("nodes were started"))
    with pytest.raises(ValueError, match=message):
        command.run(arguments(tmp_path, **changed))


@pytest.mark.parametrize("duration", [0.0, -1.0, 1e9, float("nan")])
def test_an_impossible_duration_is_refused(tmp_path, duration):
    with pytest.raises(ValueError, match="--duration must be from 1 to 3600 seconds"):
        command.run(arguments(tmp_path, duration=duration))


def test_an_arm_that_was_never_commanded_is_a_failure_with_a_report(recording, tmp_path, monkeypatch):
    recording.commands.clear()
    monkeypatch.setattr(demo, "_record", lambda args: recording)
    policy = FakePolicy(recording.chunks[0].selection)
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_policy", lambda *args, **kwargs: policy)
    with pytest.raises(demo.DemoFailed, match="never commanded the arm: no image"):
        command.run(arguments(tmp_path))
    assert (tmp_path / "report.html").exists()


@pytest.mark.ros
def test_the_whole_demo(tmp_path, capsys, monkeypatch):
    for name in ("compress.compress", "files.kept.compress_to_file"):  # the film takes what the node's worker has kept
        monkeypatch.setattr(f"sqap_vla_ros.compression.{name}", lambda *_, **__: pytest.fail("compressed once more"))
    assert command.run(arguments(tmp_path, duration=2.0, episodes=2, instruction="pick up the red cube")) == 0
    for name in ("demo.mp4", "demo.webp", "report.html", "report.png", "report.json"):
        assert (tmp_path / name).stat().st_size > 1000
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary["chunks"] > 0
    assert [episode["instruction"] for episode in summary["episodes"]] == ["pick up the red cube"] * 2
    assert summary["episodes"][1]["at_s"] > 2.0
    assert summary["kept_mean"]["ring"] > 0
    assert summary["joint_error_rad"]["rms"] < 0.05
    assert str(tmp_path / "demo.mp4") in capsys.readouterr().out


@pytest.mark.ros
def test_a_policy_that_cannot_be_loaded_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "require_fitting", lambda *_: None)  # which would say so before a node starts
    broken = tmp_path / "broken.safetensors"
    save_file({}, broken, metadata={"format": FORMAT})  # looks like a compressed policy until it is loaded
    with pytest.raises(demo.DemoFailed, match=r"ended by itself: policy_node|could not be enabled.*broken"):
        command.run(arguments(tmp_path, checkpoint=str(broken), duration=3.0))
