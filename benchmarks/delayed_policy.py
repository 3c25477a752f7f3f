"""A policy_node whose policy answers late, as a slower computer's would: a shipped policy that waits before it answers.

`benchmarks/ros_agreement.py --delay-s` runs it in place of policy_node. The environment says what to load and for how
long an answer takes, the computation included: DELAYED_CHECKPOINT, DELAYED_RECIPE, DELAYED_WALL_S.
"""

from __future__ import annotations

import os
import sys
import time

from sqap_vla_ros.contracts import ActionChunk, Observation, Policy, PolicyInfo


class DelayedPolicy:
    """Answers as the policy inside, no sooner than `wall_s` after it was asked."""

    def __init__(self, policy: Policy, wall_s: float) -> None:
        self._policy, self._wall_s = policy, wall_s

    @property
    def info(self) -> PolicyInfo:
        """As the policy inside."""
        return self._policy.info

    def reset(self) -> None:
        """As the policy inside."""
        self._policy.reset()

    def predict(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """As the policy inside, later."""
        due_s = time.monotonic() + self._wall_s
        chunk = self._policy.predict(observation, seed=seed)
        time.sleep(max(0.0, due_s - time.monotonic()))
        return chunk


def load() -> DelayedPolicy:
    """Return what the environment names."""
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.shipped import SHIPPED

    policy = load_policy(os.environ["DELAYED_CHECKPOINT"], os.environ["DELAYED_RECIPE"], shipped=SHIPPED)
    return DelayedPolicy(policy, float(os.environ["DELAYED_WALL_S"]))


if __name__ == "__main__":
    from sqap_vla_ros.nodes.policy.node import main

    sys.exit(main(worker_factory="delayed_policy:load"))
