"""vla-eval's LIBERO benchmark for a policy that looks through one camera, and not at each step.

Rendering is nearly all that a step of LIBERO costs. A policy that executes `picture_every` actions of each chunk reads
one picture in as many steps, so only those are rendered; in between the last one is sent again. Episodes begin without
compiling the model anew, which would take ten times as long. The initial states, the settling, the steps and the test
of success are vla-eval's; test/benchmarks/test_libero_benchmark.py compares the episodes. Suites of LIBERO-PRO are
named as they are registered ("libero_object_swap").
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from robosuite.utils.observables import sensor
from vla_eval.benchmarks.libero.benchmark import LIBERO_ENV_RESOLUTION
from vla_eval.benchmarks.libero_pro.benchmark import LIBEROProBenchmark
from vla_eval.protocol.numpy_codec import set_image_format

CAMERA = "agentview"


class SparingEnvironment:
    """An environment of LIBERO whose camera gives its last picture again, unless the step's picture is looked at.

    An episode depends on its initial state alone, not on those before it.

    looked_at: number of a step since the reset, from 1 -> whether its picture is needed.
    """

    def __init__(self, env: Any, looked_at: Callable[[int], bool]) -> None:
        self._env, self._looked_at = env, looked_at
        self._step = 0
        self._picture: NDArray[np.uint8] | None = None
        camera = env.env._observables[f"{CAMERA}_image"]
        self._render = camera._sensor
        camera.set_sensor(sensor(modality="image")(lambda cache: self._read(cache)))  # a method takes no attributes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self) -> Any:
        """Begin anew; the number of the next step is 1."""
        self._step = 0
        gripper = self._env.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)  # robosuite keeps it where the model stays
        return self._env.reset()

    def set_init_state(self, state: Any) -> Any:
        """Set the initial state. What the solver begins with is not of the layout that `reset` drew."""
        observation = self._env.set_init_state(state)
        self._env.sim.data.qacc_warmstart[:] = 0.0
        return observation

    def step(self, action: Any) -> Any:
        """Execute an action. robosuite decides when within the step it reads the camera."""
        self._step += 1
        return self._env.step(action)

    def _read(self, cache: Any) -> NDArray[np.uint8]:
        if self._picture is None or self._looked_at(self._step):
            self._picture = self._render(cache)
        return self._picture


class OneCamera(LIBEROProBenchmark):
    """LIBERO or LIBERO-PRO through agentview.

    picture_every: steps between two pictures that the policy reads, which is the server's execution horizon.
    """

    def __init__(self, suite: str, picture_every: int = 1, **params: Any) -> None:
        super().__init__(suite=suite, **params)
        self._every = picture_every
        set_image_format("raw")  # to a server on the same machine, PNG takes longer than it saves

    def reset(self, task: Any) -> Any:
        """Begin an episode from the suite's initial state of its number."""
        if self._env is None or self._current_task_id != task["task_id"]:
            self.cleanup()
            self._env, self._current_task_id = self._made(task["task_obj"]), task["task_id"]
        return super().reset(task)

    def _made(self, task: Any) -> SparingEnvironment:
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        env = OffScreenRenderEnv(
            bddl_file_name=str(Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file),
            camera_heights=LIBERO_ENV_RESOLUTION,
            camera_widths=LIBERO_ENV_RESOLUTION,
            camera_names=[CAMERA],
            hard_reset=False,  # which would also make the camera's sensor anew
        )
        env.seed(self.env_seed)
        settled = self.num_steps_wait  # the first picture that is looked at
        return SparingEnvironment(env, lambda step: step >= settled and (step - settled) % self._every == 0)
