"""The tabletop behind gymnasium's interface, for libraries that expect it. The project itself uses `TabletopEnv`."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sqap_vla_ros.simulation.environment import CONTROL_DT_S, MAX_DELTA_M, MAX_DELTA_RAD, TabletopEnv
from sqap_vla_ros.simulation.layout import VISUAL_MATCHING, Variation

_CHARACTERS = "abcdefghijklmnopqrstuvwxyz "
_LONGEST_INSTRUCTION = 80


class TabletopGymEnv(gymnasium.Env[dict[str, Any], NDArray[np.float64]]):
    """The tabletop as a gymnasium environment.

    Observations are `image` [H, W, 3] uint8 of the front camera, `instruction` in words, and `gripper_pixel`, the tool
    frame in the image (u, v), or (-1, -1) out of view.

    Actions are [7] as robot/conventions.py defines them. The reward is 1 when the task is done, which ends the episode,
    and 0 before. Options of `reset`: "family" (a task family) or "instruction" (in words); neither draws a task.

    Raises RenderingUnavailableError at the first picture where the machine has no OpenGL.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / CONTROL_DT_S)}  # noqa: RUF012 as in gymnasium

    def __init__(
        self,
        *,
        variation: Variation = VISUAL_MATCHING,
        width: int = 640,
        height: int = 480,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be 'rgb_array' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.tabletop = TabletopEnv(variation=variation, width=width, height=height)
        limit = np.array([MAX_DELTA_M] * 3 + [MAX_DELTA_RAD] * 3)
        self.action_space = spaces.Box(np.append(-limit, 0.0), np.append(limit, 1.0), dtype=np.float64)
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (height, width, 3), np.uint8),
                "instruction": spaces.Text(_LONGEST_INSTRUCTION, charset=_CHARACTERS),
                "gripper_pixel": spaces.Box(-1.0, np.array([width, height], np.float64), dtype=np.float64),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; without a seed, one drawn from the generator that the last seed set."""
        super().reset(seed=seed)
        given = dict(options or {})
        family, instruction = given.pop("family", None), given.pop("instruction", "")
        if given:
            raise ValueError(f"options may hold 'family' and 'instruction', got {', '.join(map(repr, given))} too")
        layout_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        task = self.tabletop.reset(layout_seed, family, instruction=instruction)
        return self._observation(), {"family": str(task.family), "layout_seed": layout_seed}

    def step(self, action: NDArray[np.float64]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute one action for CONTROL_DT_S seconds. Raises ValueError when it is not 7 finite numbers."""
        result = self.tabletop.step(action)
        info = {**result.info, "success": result.terminated}
        return self._observation(), float(result.terminated), result.terminated, result.truncated, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Return the camera's image, None without a render mode."""
        return self.tabletop.render() if self.render_mode else None

    def close(self) -> None:
        """Give the OpenGL context back."""
        self.tabletop.close()

    def _observation(self) -> dict[str, Any]:
        pixel = self.tabletop.gripper_pixel
        return {
            "image": self.tabletop.render(),
            "instruction": self.tabletop.task.instruction,
            "gripper_pixel": np.array((-1.0, -1.0) if pixel is None else np.maximum(pixel, 0.0)),
        }
