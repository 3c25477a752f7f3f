"""The choice of features in a LeRobot dataset: given, or found by what features are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqap_vla_ros.recordings.lerobot.layout import DatasetError, Feature, Layout
from sqap_vla_ros.robot.interchange.action_space import ACTION_SPACES
from sqap_vla_ros.robot.interchange.fixed_camera import FixedCamera
from sqap_vla_ros.robot.interchange.tool_state import STATES

NONE = "none"
# Names that follow x, y, z in a state -> the form they mean, a name of `STATES`.
_FORMS = {
    ("roll", "pitch", "yaw"): "rpy",
    ("rx", "ry", "rz"): "axis_angle",
    ("axis_angle1", "axis_angle2", "axis_angle3"): "axis_angle",
    ("qx", "qy", "qz", "qw"): "quat_xyzw",
    ("qw", "qx", "qy", "qz"): "quat_wxyz",
}
_ACTION_WIDTH = 7
# Names that follow x, y, z in an action: a motion has three for its rotation, and a gripper behind them.
_TURNS = {words for words in _FORMS if len(words) == 3} | {("wx", "wy", "wz"), ("rot_x", "rot_y", "rot_z")}
_MOTION = re.compile(r"^(?:action|eef|ee|tcp|tool|pos|position|delta|rel|d)_?(?=[a-z])")  # ahead of such a name
_NUMBERED = re.compile(r"(?:actions?|a|dim|dimension|channel|element|component|value)?[ _.\-\[]*\d+\]?")  # says nothing


@dataclass(frozen=True)
class DatasetSpec:
    """The features to read; None: found by itself, where there is one that fits. `none` reads none.

    image_key, state_key, action_key: names of features. The state begins with the tool's position (m) and rotation in
    the base frame; state: a name of `STATES`, None: from the names of its elements. An action found by itself is
    read unless the names of its elements are those of something else than a motion of the tool. action_space: a name of
    `ACTION_SPACES`. camera: projects the tool, None where there is no ring. instruction: in place of the tasks.
    episodes: indices, () for all. stride: use every n-th frame of an episode.
    """

    image_key: str | None = None
    state_key: str | None = None
    action_key: str | None = None
    state: str | None = None
    action_space: str = "metric"
    camera: FixedCamera | None = None
    instruction: str = ""
    episodes: tuple[int, ...] = ()
    stride: int = 1
    max_age_s: float = 0.5  # nothing in a dataset is late; the report says so

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.action_space not in ACTION_SPACES:
            raise ValueError(f"--action-space must be one of {', '.join(ACTION_SPACES)}, got {self.action_space!r}")
        if self.state is not None and self.state not in STATES:
            raise ValueError(f"--state must be one of {', '.join(STATES)}, got {self.state!r}")


@dataclass(frozen=True)
class Choice:
    """The features that are read. state is None without a pose of the tool, and `no_pose` says why; so is action."""

    image: Feature
    state: Feature | None
    form: str
    action: Feature | None
    no_pose: str = ""
    no_action: str = ""


def choose(layout: Layout, spec: DatasetSpec) -> Choice:
    """Return the features to read. Raises DatasetError with the choices where a feature is missing or ambiguous."""
    image = _one(layout, spec.image_key, lambda feature: feature.is_picture, "the camera", "--image-key")
    if image is None:
        raise DatasetError(f"{layout.root} has no pictures; it has: {_listing(list(layout.features.values()))}")
    state, form, no_pose = _state(layout, spec)
    action = no_action = None
    asked = spec.action_key or ("action" if "action" in layout.features else NONE)
    if asked != NONE:
        action = _one(layout, asked, _is_vector, "the action", "--action-key")
    if action is not None and action.shape != (_ACTION_WIDTH,):
        no_action = f"{action} has not the {_ACTION_WIDTH} elements of a motion of the tool and a gripper"
        if spec.action_key is not None:
            raise DatasetError(f"{layout.root}: --action-key {no_action}")
        action = None
    elif action is not None and spec.action_key is None and not _may_be_motion(action):
        no_action = f"{action} names no motion of the tool: say --action-key {action.key} if it is one"
        action = None
    return Choice(image, state, form, action, no_pose, no_action or ("" if action else "none are read"))


def _state(layout: Layout, spec: DatasetSpec) -> tuple[Feature | None, str, str]:
    """Return the feature with the tool's pose and its form, or None and why there is none."""
    if spec.state_key == NONE:
        return None, "", "--state-key none"
    asked = spec.state_key or ("observation.state" if "observation.state" in layout.features else None)
    if asked is None and spec.state is None:
        return None, "", "the dataset has no observation.state: name the tool's pose with --state-key"
    state = _one(layout, asked, _is_vector, "the state", "--state-key")
    if state is None:
        return None, "", "the dataset has no state"
    form = spec.state or _form(state)
    if form is None:
        return None, "", f"{state} names no pose of the tool: say with --state how it begins, if it does"
    if state.shape[0] < 3 + STATES[form][0]:
        raise DatasetError(f"{layout.root}: {state} is too short for x, y, z and {form}")
    return state, form, ""


def _may_be_motion(action: Feature) -> bool:
    """Return False where the names of an action's elements say that it is no motion of the tool and a gripper."""
    if len(action.names) != _ACTION_WIDTH or all(_NUMBERED.fullmatch(name.lower()) for name in action.names):
        return True  # nothing is said
    names = _last_words(action)
    bare = [_MOTION.sub("", _MOTION.sub("", name)) for name in names]
    return bare[:3] == ["x", "y", "z"] and not _TURNS.isdisjoint({tuple(names[3:6]), tuple(bare[3:6])})


def _last_words(feature: Feature) -> list[str]:
    """Return the names of a feature's elements without what stands ahead of a dot, slash or space."""
    return [re.sub(r"^.*[./ ]", "", name.lower()) for name in feature.names]


def _form(state: Feature) -> str | None:
    names = _last_words(state)
    if names[:3] != ["x", "y", "z"]:
        return None
    return next((form for words, form in _FORMS.items() if tuple(names[3 : 3 + len(words)]) == words), None)


def _is_vector(feature: Feature) -> bool:
    return len(feature.shape) == 1 and feature.dtype.startswith(("float", "int"))


def _one(layout: Layout, asked: str | None, fits: Callable[[Feature], bool], what: str, option: str) -> Feature | None:
    """Return the feature asked for, else the only one that fits, else None. Raises DatasetError."""
    fitting = [feature for feature in layout.features.values() if fits(feature)]
    if asked is None:
        if len(fitting) > 1:
            raise DatasetError(
                f"{layout.root} has several features that may be {what}: choose with {option} among {_listing(fitting)}"
            )
        return fitting[0] if fitting else None
    if layout.features.get(asked) not in fitting:
        raise DatasetError(f"{layout.root}: {option} {asked!r} is not {what}; there are: {_listing(fitting)}")
    return layout.features[asked]


def _listing(features: Sequence[Feature]) -> str:
    return "; ".join(map(str, features)) or "none"
