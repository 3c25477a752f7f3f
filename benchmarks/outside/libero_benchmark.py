"""vla-eval's LIBERO benchmark with one camera: the policy sees agentview alone, and a second picture costs as much.

Everything else, the initial states, the settling, the steps and the test of success, is vla-eval's. Suites of
LIBERO-PRO are named as they are registered ("libero_object_swap"). `first_episode` is added to each episode's number,
so that a long evaluation can be made in parts.
"""

from pathlib import Path
from typing import Any

from vla_eval.benchmarks.libero.benchmark import LIBERO_ENV_RESOLUTION
from vla_eval.benchmarks.libero_pro.benchmark import LIBEROProBenchmark


class OneCamera(LIBEROProBenchmark):
    """LIBERO or LIBERO-PRO through agentview."""

    def __init__(self, suite: str, first_episode: int = 0, **params: Any) -> None:
        super().__init__(suite=suite, **params)
        self._first = first_episode

    def reset(self, task: Any) -> Any:
        """Begin an episode from the suite's initial state of its number."""
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv

        if self._env is None or self._current_task_id != task["task_id"]:
            self.cleanup()
            one = task["task_obj"]
            env = OffScreenRenderEnv(
                bddl_file_name=str(Path(get_libero_path("bddl_files")) / one.problem_folder / one.bddl_file),
                camera_heights=LIBERO_ENV_RESOLUTION,
                camera_widths=LIBERO_ENV_RESOLUTION,
                camera_names=["agentview"],
            )
            env.seed(self.env_seed)
            self._env, self._current_task_id = env, task["task_id"]
        return super().reset({**task, "episode_idx": self._first + task.get("episode_idx", 0)})
