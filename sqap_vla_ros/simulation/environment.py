"""The tabletop as an environment: reset, step by action, look. The embedded benchmark and training run on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.camera import project_tool
from sqap_vla_ros.robot.conventions import compose_delta, invert_pose
from sqap_vla_ros.simulation.camera import SceneRenderer, camera_model
from sqap_vla_ros.simulation.layout import VISUAL_MATCHING, Layout, Variation, sample_layout
from sqap_vla_ros.simulation.scene import FINGER_RANGE_M
from sqap_vla_ros.simulation.tasks import Task, WorldState
from sqap_vla_ros.simulation.vocabulary import CONTROL_DT_S, TaskFamily
from sqap_vla_ros.simulation.world import TabletopWorld

CONTROL_NS = round(CONTROL_DT_S * NS_PER_S)
MAX_DELTA_M = 0.08  # per action; the workspace and these bounds stand in for a controller's limits
MAX_DELTA_RAD = 0.5
WORKSPACE_M = ((0.22, -0.45, 0.012), (0.72, 0.45, 0.45))
_SEGMENTS = 10  # straight pieces the arm's joint targets follow within an action


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step. terminated: the task is done. truncated: its time is over. info: reach error of the IK."""

    terminated: bool
    truncated: bool
    info: dict[str, Any]


class TabletopEnv:
    """The tabletop, one episode after the other at 5 Hz, deterministic for a seed. A context manager when rendering.

    Actions are [7] as robot/conventions.py defines them; they move the commanded pose, not the measured one, as a
    controller does, so that lag does not add up. Pictures are plain unless asked for otherwise, as simulator_node's
    are: a policy should see in training what it will see in use.
    """

    def __init__(
        self,
        *,
        variation: Variation = VISUAL_MATCHING,
        width: int = 640,
        height: int = 480,
        shadows: bool = False,
        antialiasing: bool = False,
    ) -> None:
        self.variation = variation
        self.world = TabletopWorld()
        self.width, self.height = width, height
        self._looks = {"shadows": shadows, "antialiasing": antialiasing}
        self._renderer: SceneRenderer | None = None
        self._pose = np.eye(4)
        self._joints = np.zeros(7)
        self.steps = 0

    # -- gymnasium's verbs --------------------------------------------------------------------------------------------

    def reset(self, seed: int, family: TaskFamily | str | None = None, *, instruction: str = "") -> Task:
        """Start the episode of `seed`, its task drawn, of a family or in words (see `sample_layout`)."""
        return self.start(sample_layout(seed, family, self.variation, instruction=instruction))

    def start(self, layout: Layout) -> Task:
        """Start the episode that `layout` describes."""
        self.world.reset(layout)
        self._pose = self.world.base_from_tool
        self._joints = self.world.arm_position
        self.steps = 0
        return layout.task

    def step(self, action: NDArray[np.float64]) -> StepResult:
        """Execute one action [7] for CONTROL_DT_S seconds. Raises ValueError when it is not 7 finite numbers."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, got {action!r}")
        limited = np.concatenate(
            [np.clip(action[:3], -MAX_DELTA_M, MAX_DELTA_M), np.clip(action[3:6], -MAX_DELTA_RAD, MAX_DELTA_RAD)]
        )
        self._pose = compose_delta(self._pose, limited)
        self._pose[:3, 3] = np.clip(self._pose[:3, 3], *WORKSPACE_M)
        joints, error = self.world.inverse(self._pose, self._joints)
        self.world.command_fingers(FINGER_RANGE_M[1] if action[6] > 0.5 else FINGER_RANGE_M[0])
        steps = round(CONTROL_DT_S / _SEGMENTS / self.world.timestep_s)
        for i in range(1, _SEGMENTS + 1):
            self.world.command_arm(self._joints + (joints - self._joints) * i / _SEGMENTS)
            self.world.step(steps)
        self.world.refresh()
        self._joints = joints
        self.steps += 1
        return StepResult(self.succeeded, self.steps >= self.task.max_steps, {"reach_error": error})

    def render(self) -> NDArray[np.uint8]:
        """Return the front camera's present picture, [H, W, 3] uint8 RGB."""
        return self._get_renderer().render(self.world.data)

    def segmentation(self) -> NDArray[np.int32]:
        """Return the body seen in each pixel, [H, W] int32 (see SceneRenderer.segmentation)."""
        return self._get_renderer().segmentation(self.world.data)

    def close(self) -> None:
        """Give the renderer's OpenGL context back."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> TabletopEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what evaluation and training look at -------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        if self.world.layout is None:
            raise RuntimeError("no episode has begun: call reset first")
        return self.world.layout.task

    @property
    def state(self) -> WorldState:
        return self.world.state()

    @property
    def succeeded(self) -> bool:
        return self.task.succeeded(self.world.state())

    @property
    def commanded_pose(self) -> NDArray[np.float64]:
        """Pose base_from_tool [4, 4] that the arm was told to reach last."""
        return self._pose.copy()

    @property
    def gripper_pixel(self) -> tuple[float, float] | None:
        """Pixel (u, v) of the tool frame in the rendered image; None where it is not in view."""
        camera = camera_model(self.world.camera_fovy_rad, self.width, self.height)
        return project_tool(camera, invert_pose(self.world.base_from_optical), self.world.base_from_tool).pixel

    def _get_renderer(self) -> SceneRenderer:
        if self._renderer is None:
            self._renderer = SceneRenderer(self.world.model, self.width, self.height, **self._looks)
        return self._renderer
