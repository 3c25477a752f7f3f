"""The replay's numbers against closed forms."""

import math

import numpy as np
import pytest

from sqap_vla_ros.contracts import PolicyInfo, Reason, TokenSelection
from sqap_vla_ros.evaluation.replay import metrics as metrics
from sqap_vla_ros.evaluation.replay.run import FrameRecord, RecipeRun

INFO = PolicyInfo("c", "", "r", 1, 16, 0.2, 224, (16, 16), "k", "none")
DT_S = 0.2


def record(index=0, *, deltas=None, pose=None, second=0.0, pixel=(1.0, 2.0), new=False, ms=10.0, **extra):
    deltas = np.zeros((16, 7)) if deltas is None else deltas
    return FrameRecord(
        index,
        round(second * 1e9),
        0.01,
        new or index == 0,
        extra.pop("problem", ""),
        extra.pop("note", ""),
        "do it",
        pixel,
        pose,
        deltas,
        extra.pop("normalized", deltas),
        DT_S,
        ms,
        {"vision": ms / 2, "decoder": ms / 2},
        **extra,
    )


def run(records, name="r"):
    return RecipeRun(name, INFO, records, 100.0, {})


def constant(**channels):
    deltas = np.zeros((16, 7))
    for name, value in channels.items():
        deltas[:, ["x", "y", "z", "roll", "pitch", "yaw", "gripper"].index(name)] = value
    return deltas


def pose_at(x):
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def test_record_survives_its_line():
    selection = TokenSelection(
        np.array([3, 7], np.int32), np.array([Reason.RING, Reason.ATTENTION], np.uint8), (16, 16), "sqap", 3, (1, 2)
    )
    before = record(4, deltas=constant(x=0.01), pose=pose_at(0.5), selection=selection, note="behind the camera: z")
    after = FrameRecord.from_json(before.to_json())
    assert after.kept == {"attention": 1, "ring": 1}
    for name, value in vars(before).items():
        if name == "selection":
            assert {k: np.asarray(v).tolist() for k, v in vars(after.selection).items()} == {
                k: np.asarray(v).tolist() for k, v in vars(value).items()
            }
        else:
            np.testing.assert_array_equal(getattr(after, name), value)


def test_frame_without_a_prediction_survives_its_line():
    before = FrameRecord(1, 5, 0.1, False, "no instruction", "")
    assert FrameRecord.from_json(before.to_json()) == before


def test_latency_percentiles_and_deadline():
    summary = metrics.summarise(
        run([record(i, ms=float(ms)) for i, ms in enumerate(range(1, 101))]), run([]), control_rate_hz=20.0
    )
    assert summary["latency_ms"]["total"]["p50"] == pytest.approx(50.5)
    assert summary["latency_ms"]["total"]["max"] == 100.0
    assert summary["latency_ms"]["vision"]["max"] == 50.0
    assert summary["deadline_misses"] == pytest.approx(0.5)  # 51 ... 100 ms against 50 ms


def test_difference_of_constant_actions():
    """1 mm and 2 degrees more on each of 16 steps: 16 mm at the end of the chunk, 32 degrees of rotation."""
    reference = [record(i) for i in range(3)]
    ours = [record(i, deltas=constant(x=1e-3, yaw=math.radians(2), gripper=1.0)) for i in range(3)]
    difference = metrics.action_difference(ours, reference)
    assert difference["translation_mm"]["mean"] == pytest.approx(1.0)
    assert difference["rotation_deg"]["max"] == pytest.approx(2.0)
    assert difference["end_translation_mm"]["mean"] == pytest.approx(16.0)
    assert difference["end_rotation_deg"]["mean"] == pytest.approx(32.0)
    assert difference["gripper_disagreement"] == 1.0
    norm = math.sqrt(16 * (1e-6 + math.radians(2) ** 2 + 1))
    assert difference["squared"] == pytest.approx(norm**2)
    assert difference["cumulative"] == pytest.approx(3 * norm)


def test_cumulative_is_per_episode():
    ours = [record(i, deltas=constant(x=0.5), new=i in (0, 2)) for i in range(4)]
    reference = [record(i) for i in range(4)]
    assert metrics.action_difference(ours, reference)["cumulative"] == pytest.approx(2 * 0.5 * 4)


def test_difference_is_of_executed_actions():
    """Normalised values beyond [-1, 1] are clipped before execution: there is no difference beyond the clip."""
    wild = record(0, normalized=np.full((16, 7), 3.0))
    limit = record(0, normalized=np.full((16, 7), 1.0))
    assert metrics.frame_errors([(wild, limit)])[0] == 0.0


def test_only_common_frames_are_compared():
    ours = [record(0), record(1), record(2)]
    reference = [record(1), record(2), record(9)]
    assert metrics.action_difference(ours, reference)["frames"] == 2
    assert metrics.action_difference(ours, [record(5)]) is None


def test_against_the_recording():
    """The tool moved at 10 cm/s and the policy plans exactly that, or stands still."""
    seconds = np.arange(0, 2.01, 0.2)
    exact = [record(i, deltas=constant(x=0.02), pose=pose_at(0.1 * t), second=t) for i, t in enumerate(seconds)]
    motion = metrics.against_recording(exact)
    known = [value for value in motion["by_step_mm"] if value is not None]
    assert len(known) == 10  # 2 s of recording hold ten steps after the first image
    np.testing.assert_allclose(known, 0.0, atol=1e-6)
    np.testing.assert_allclose([v for v in motion["still_mm"] if v is not None], 20.0 * np.arange(1, 11), atol=1e-6)
    still = [record(i, pose=pose_at(0.1 * t), second=t) for i, t in enumerate(seconds)]
    np.testing.assert_allclose(
        [v for v in metrics.against_recording(still)["by_step_mm"] if v is not None], 20.0 * np.arange(1, 11), atol=1e-6
    )
    assert metrics.against_recording([record(0), record(1)]) is None  # no poses


def test_seams():
    """The plan from 0 goes 2 cm a step, the next image 0.2 s later finds the tool 1 cm short of it."""
    records = [
        record(0, deltas=constant(x=0.02), pose=pose_at(0.0)),
        record(1, deltas=constant(x=0.02), pose=pose_at(0.01), second=0.2),
    ]
    jump = metrics.seams(records)
    assert jump["seams"] == 1
    assert jump["translation_mm"]["mean"] == pytest.approx(10.0)
    assert jump["rotation_deg"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert metrics.seams(records[:1]) is None


def test_seams_of_late_chunks_by_how_they_are_entered():
    """As above, and the newer plan comes after 0.4 s: the jump stays by the clock, by pose there is none."""
    records = [
        record(0, deltas=constant(x=0.02), pose=pose_at(0.0)),
        record(1, deltas=constant(x=0.02), pose=pose_at(0.01), second=0.2, ms=400.0),
    ]
    jump = metrics.late_seams(records)
    assert jump["clock"]["mean"] == pytest.approx(10.0)
    assert jump["path"]["mean"] == pytest.approx(0.0, abs=1e-6)
    assert metrics.late_seams(records[:1]) is None
    assert metrics.late_seams([records[0], record(1, pose=pose_at(0.0), second=0.2, ms=3300.0)]) is None  # all past


@pytest.mark.parametrize(("first", "path_mm"), [(0.0, 10.0), (1.0, 0.0), (0.55, 0.0)])
def test_late_seams_know_a_gripper_that_closed_two_plans_ago(first, path_mm):
    """Since then plans hover. The newest has the hand open where the tool is, and closed 10 mm further on."""
    still, hovering, closing = constant(gripper=0.55), constant(gripper=0.55), constant(gripper=1.0)
    still[:2, 6] = first
    closing[0, 0], closing[4, 0], closing[5:, 6] = -0.03, 0.01, 0.0
    plans = [(still, 0.0, 0.0, 1.0), (hovering, 0.0, 0.2, 200.0), (closing, 0.03, 0.4, 400.0)]
    records = [
        record(index, deltas=deltas, pose=pose_at(x_m), second=second, ms=ms)
        for index, (deltas, x_m, second, ms) in enumerate(plans)
    ]
    for of_an_episode in (records, [*records[1:], *records]):  # what another episode did is not known
        assert metrics.late_seams(of_an_episode)["path"]["max"] == pytest.approx(path_mm, abs=1e-6)


def test_jerk_of_a_cubic():
    """x = t^3 has jerk 6."""
    t = DT_S * np.arange(17)
    deltas = np.zeros((16, 7))
    deltas[:, 0] = np.diff(t**3)
    assert metrics.jerk(record(deltas=deltas)) == pytest.approx(6.0)
    assert metrics.jerk(record(deltas=constant(x=0.3))) == pytest.approx(0.0, abs=1e-9)


def test_ring_coverage_counts_the_reasons():
    records = [
        record(0),
        record(1, pixel=None, note="behind the camera: z = -0.2 m"),
        record(2, pixel=None, note="behind the camera: z = -0.3 m"),
        record(3, pixel=None, note="outside the image: (u, v) = (700, 2)"),
    ]
    coverage = metrics.ring_coverage(records)
    assert coverage == {"in_view": 0.25, "not_in_view": {"behind the camera": 2, "outside the image": 1}}


def test_worst_frames_come_first():
    ours = [record(i, deltas=constant(x=error)) for i, error in enumerate((0.1, 0.3, 0.2))]
    worst = metrics.worst_frames(run(ours), run([record(i) for i in range(3)]), 2)
    assert [index for index, _ in worst] == [1, 2]
    assert worst[0][1] == pytest.approx(0.3 * 4)


def test_a_pause_of_the_camera_separates_episodes():
    """Clips with the same instruction: what was planned in one is not compared with where the tool was in the next."""
    seconds = [0.0, 0.2, 0.4, 6.0, 6.2, 6.4]
    poses = [np.eye(4) for _ in seconds]
    for pose in poses[3:]:
        pose[0, 3] = 1.0
    records = [record(i, second=s, pose=p) for i, (s, p) in enumerate(zip(seconds, poses, strict=True))]
    assert [len(episode) for episode in metrics.episodes_of(records)] == [3, 3]
    assert metrics.against_recording(records)["mean_mm"] == 0.0
    assert metrics.seams(records)["translation_mm"]["max"] == 0.0
    sparse = [record(i, second=5.0 * i) for i in range(4)]
    assert len(metrics.episodes_of(sparse)) == 1  # every n-th frame: no pause, a slow camera
