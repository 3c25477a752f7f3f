"""A camera that shows what was while the tool moves, and what looks like one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control.camera.image_gate import ImageGate, ImageGateConfig
from sqap_vla_ros.control.camera.pictures import ToolView
from sqap_vla_ros.robot.camera import CameraModel
from sqap_vla_ros.robot.conventions import invert_pose

WIDTH, HEIGHT, FOCAL = 160, 120, 150.0
PERIOD_S = 0.1
SPEED = 0.05  # m/s
CAMERA = CameraModel(
    WIDTH,
    HEIGHT,
    np.array([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]]),
    distortion=np.zeros(0),
    fisheye=False,
    rotation=np.eye(3),
    translation=np.zeros(3),
    max_radius=np.inf,
)
ABOVE = np.diag([1.0, -1.0, -1.0, 1.0])  # base_from_optical of a camera that looks down from a metre above the tool
ABOVE[2, 3] = 1.0
TABLE = np.kron(np.random.default_rng(0).integers(60, 200, (15, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def tool_at(x: float) -> np.ndarray:
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def view(x: float, base_from_optical: np.ndarray = ABOVE) -> ToolView:
    return ToolView(CAMERA, invert_pose(base_from_optical), tool_at(x))


def gripper_at(x: float, table: np.ndarray = TABLE) -> np.ndarray:
    """The picture of a table with a gripper."""
    u, v = view(x).tool.round().astype(int)
    image = table.copy()
    image[max(0, v - 10) : v + 4, max(0, u - 6) : u + 6] = (30, 30, 40)
    return image


def noise(image: np.ndarray, levels: float, seed: int) -> np.ndarray:
    return np.clip(image + np.random.default_rng(seed + 1000).normal(0.0, levels, image.shape), 0, 255).astype(np.uint8)


INTRO_S = 6.0  # in which the camera sees the tool come from afar


def to_and_fro(t_s: float, rest_s: float = 1.0) -> float:
    """Where the tool is: it has come from afar, rests, moves for three seconds, and rests again."""
    return SPEED * float(np.clip(t_s - rest_s, 0.0, 3.0)) - 0.07 - SPEED * float(np.clip(-t_s, 0.0, INTRO_S))


def verdicts(
    shown: Callable[[float], np.ndarray],
    x_at: Callable[[float], float] = to_and_fro,
    view_at: Callable[[float], ToolView] | None = None,
    seconds: float = 6.0,
    gate: ImageGate | None = None,
) -> list[str | None]:
    """What is said of each picture from 0 s on, after an intro in which nothing may be said."""
    gate = gate or ImageGate(ImageGateConfig())
    found = []
    for step in range(-round(INTRO_S / PERIOD_S), round(seconds / PERIOD_S)):
        t_s = step * PERIOD_S
        seen = view_at(t_s) if view_at else view(x_at(t_s))
        stamp_ns = round((t_s + 10.0) * NS_PER_S)
        found.append(gate.frozen(shown(t_s), stamp_ns, seen.base_from_tool[:3, 3], seen))
    intro = round(INTRO_S / PERIOD_S)
    assert not any(found[:intro])
    return found[intro:]


def live(t_s: float) -> np.ndarray:
    return gripper_at(to_and_fro(t_s))


@pytest.mark.parametrize("levels", [0.0, 3.0, 8.0])
@pytest.mark.parametrize("late_s", [0.0, 0.7])
def test_a_live_camera_is_not_frozen_whatever_its_noise_and_its_latency(levels, late_s):
    assert not any(verdicts(lambda t: noise(live(t - late_s), levels, round(t / PERIOD_S))))


@pytest.mark.parametrize(
    "change",
    [
        lambda image, n: image,
        lambda image, n: noise(image, 3.0, n),
        lambda image, n: clock(image, n),
    ],
)
def test_a_frozen_picture_is_noticed_with_noise_and_with_a_clock_written_into_it(change):
    found = verdicts(lambda t: change(live(min(t, 1.5)), round(t / PERIOD_S)))
    named = [text for text in found if text is not None and "the camera is frozen" in text]
    assert named
    assert found.index(named[0]) <= 30  # 1.5 s after it froze


def clock(image: np.ndarray, n: int) -> np.ndarray:
    shown = image.copy()
    shown[:5, :30] = 255 * (n % 2)
    return shown


def test_it_is_said_how_much_of_a_frozen_picture_changed():
    found = verdicts(lambda t: clock(live(min(t, 1.5)), round(t / PERIOD_S)))
    assert any("equal images but for noise and 0." in (text or "") for text in found)


def shelf(image: np.ndarray) -> np.ndarray:
    """A picture with a shelf before the place where the tool will be."""
    shown = image.copy()
    shown[:, 50:] = TABLE[::-1, 50:]
    return shown


@pytest.mark.parametrize(
    "shown",
    [
        lambda t: np.full_like(TABLE, 128),  # nothing would change
        lambda t: np.roll(live(t), 50, axis=0),  # the camera's transform is wrong: the gripper is seen elsewhere
        lambda t: shelf(live(t)),  # the tool is hidden
        lambda t: TABLE,  # and so is this one, which nobody ever sees
    ],
)
def test_a_tool_that_cannot_be_seen_to_move_does_not_make_a_picture_frozen(shown):
    assert not any(verdicts(lambda t: noise(shown(t), 1.0, round(t / PERIOD_S))))


def test_a_tool_that_goes_to_and_fro_in_a_picture_without_noise_is_not_frozen():
    def x_at(t_s: float) -> float:
        return 0.05 * (round(t_s / PERIOD_S) % 2)

    assert not any(verdicts(lambda t: gripper_at(x_at(t)), x_at))


def on_the_wrist(t_s: float) -> ToolView:
    x = to_and_fro(t_s)
    pose = ABOVE.copy()
    pose[0, 3] = x
    return replace(view(x), optical_from_base=invert_pose(pose))


def wrist(table: np.ndarray, t_s: float) -> np.ndarray:
    """A camera's picture that moves over a table, always with its gripper."""
    image = np.roll(table, -round(FOCAL * (to_and_fro(t_s) + 0.07)), axis=1)
    for side in (slice(0, 36), slice(124, 160)):
        image[40:, side] = (30, 30, 40)
    return image


def test_a_camera_on_the_wrist_is_frozen_when_nothing_of_what_it_passes_changes():
    def frozen(t_s: float) -> np.ndarray:
        return noise(wrist(TABLE, min(t_s, 1.5)), 3.0, round(t_s / PERIOD_S))

    assert any("frozen" in (text or "") for text in verdicts(frozen, view_at=on_the_wrist))
    assert not any(verdicts(lambda t: noise(wrist(TABLE, t), 3.0, round(t / PERIOD_S)), view_at=on_the_wrist))


@pytest.mark.parametrize("grain", [0, 3])
def test_a_camera_on_the_wrist_over_a_bare_table_is_not_frozen(grain):
    bare = (230 - np.random.default_rng(1).integers(0, grain + 1, TABLE.shape)).astype(np.uint8)
    assert not any(verdicts(lambda t: noise(wrist(bare, t), 1.0, round(t / PERIOD_S)), view_at=on_the_wrist))


def test_old_pictures_under_fresh_stamps_are_late_until_the_next_task():
    gate = ImageGate(ImageGateConfig())

    def x_at(t_s: float) -> float:
        return to_and_fro(t_s, rest_s=4.0)

    def shown(t_s: float) -> np.ndarray:
        return noise(gripper_at(x_at(t_s - 2.0)), 1.0, round(t_s / PERIOD_S))

    found = verdicts(shown, x_at, seconds=11.0, gate=gate)
    late = [text for text in found if "the camera is late by" in (text or "")]
    assert "the camera is frozen" in next(text for text in found if text)
    assert late
    assert found[-1] == late[0]  # also when it stands
    gate.begin()
    assert gate.frozen(shown(11.0), 21 * NS_PER_S, tool_at(x_at(11.0))[:3, 3], view(x_at(11.0))) is None


def speckled(image: np.ndarray, n: int) -> np.ndarray:
    """Noise with a few strong outliers, as compression leaves it."""
    rng = np.random.default_rng(n + 1000)
    shown = noise(image, 1.0, n)
    shown[rng.integers(0, HEIGHT, 40), rng.integers(0, WIDTH, 40)] = rng.integers(0, 256, 3)
    return shown


@pytest.mark.parametrize("noisy", [lambda image, n: image, speckled])
def test_a_camera_that_was_frozen_is_believed_once_it_was_watched_at_rest(noisy):
    found = verdicts(lambda t: live(1.2) if 1.2 <= t < 3.0 else noisy(live(t), round(t / PERIOD_S)))
    frozen = [step for step, text in enumerate(found) if "the camera is frozen" in (text or "")]
    watched = [step for step, text in enumerate(found) if "was frozen a moment ago" in (text or "")]
    assert frozen[-1] == 29
    assert watched == list(range(30, 50))  # the tool stands from 4.0 s on
    assert not any(found[50:])


def test_a_tool_that_never_rests_does_not_keep_a_camera_from_being_believed():
    def x_at(t_s: float) -> float:
        return 0.12 * float(np.sin(t_s))

    found = verdicts(lambda t: gripper_at(x_at(0.0 if 0.0 < t < 2.0 else t)), x_at, seconds=9.0)
    assert "the camera is frozen" in found[19]
    assert "was frozen a moment ago" in found[30]
    assert not any(found[75:])
