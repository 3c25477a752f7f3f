"""A world for vla-eval's own runner: ten actions of 2 mm bring a tool to its goal. Needs vla-eval only."""

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, DimSpec

STEPS = 10


class ToyWorld(StepBenchmark):
    render_backends = frozenset({"cpu", "gpu"})

    @classmethod
    def configure_render(cls, mode):
        return {}

    def get_tasks(self):
        return [{"name": "pick the cube", "suite": "toy"}, {"name": "place the cube", "suite": "toy"}]

    def reset(self, task):
        self.x = 0.0
        return self.x

    def step(self, action):
        actions = np.asarray(action["actions"])
        assert actions.shape == (7,)
        assert actions.dtype == np.float32
        assert actions[6] == 1.0
        self.x += float(actions[0])
        return StepResult(obs=self.x, reward=0.0, done=self.x > 0.002 * STEPS - 0.001, info={})

    def make_obs(self, raw_obs, task):
        image = np.full((64, 64, 3), int(raw_obs * 1000), np.uint8)
        return {"images": {"agentview": image}, "task_description": task["name"]}

    def get_step_result(self, step_result):
        return {"success": bool(step_result.done)}

    def get_action_spec(self):
        return {
            "position": DimSpec("position", 3, "delta_xyz"),
            "rotation": DimSpec("rotation", 3, "euler_xyz"),
            "gripper": DimSpec("gripper", 1, "continuous_01"),
        }

    def get_observation_spec(self):
        return {"agentview": IMAGE_RGB, "language": LANGUAGE}

    def get_metadata(self):
        return {"max_steps": STEPS + 5}
