"""Sights from the running robot. Only subscribes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.control.conditions import Input
from sqap_vla_ros.nodes.check.hand_eye.mounts import add_mounts
from sqap_vla_ros.nodes.check.hand_eye.sights import Sight, Surveyor
from sqap_vla_ros.nodes.policy.inputs import TF_STATIC_QOS, Inputs

SAID_S = 5.0  # between two words about the progress
ORDER = (Input.CLOCK, Input.IMAGE, Input.CAMERA_INFO, Input.TF)


def survey_robot(node: Node, values: Mapping[str, Any], surveyor: Surveyor, seconds: float) -> None:
    """Look at the images that come within so many seconds, with the subscriptions and projections of policy_node."""
    inputs = Inputs(
        node,
        values,
        simulated_time=bool(node.get_parameter("use_sim_time").value),
        turn=lambda: None,
        wake=lambda: None,
    )
    survey = surveyor.survey
    survey.where = inputs.image_topic
    mounts = node.create_subscription(
        TFMessage, "/tf_static", lambda message: add_mounts(survey.mounts, message), TF_STATIC_QOS
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    begin_s = said_s = time.monotonic()
    try:
        while (now_s := time.monotonic()) - begin_s < seconds:
            executor.spin_once(timeout_sec=0.02)
            now_ns = node.get_clock().now().nanoseconds
            inputs.expire(now_s)
            view = inputs.take_view("check", now_ns, now_s) if inputs.waiting else None
            if view is not None and view.camera is not None and view.optical_from_base is not None:
                survey.optical_frame = view.frame.frame_id
                surveyor.take(
                    Sight(
                        view.frame.stamp_ns,
                        view.observation.image,
                        view.camera,
                        view.base_from_tool,
                        view.optical_from_base,
                    )
                )
            if now_s - said_s > SAID_S:
                said_s = now_s
                _say(f"{seconds - (now_s - begin_s):.0f} s left, {len(survey.sights)} places of the tool kept")
        problems = inputs.problems(node.get_clock().now().nanoseconds, time.monotonic())
        reason = next((problems[source] for source in ORDER if source in problems), None)
        if reason is not None and not survey.images:
            survey.problems[reason] = 1
    except KeyboardInterrupt:
        _say("stopped: what was collected until now is used")
    finally:
        node.destroy_subscription(mounts)
        executor.remove_node(node)
        executor.shutdown()
        inputs.destroy()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
