"""The table of output modes: a new one is a class and a row here."""

from __future__ import annotations

from sqap_vla_ros.nodes.policy.sinks.joint import JointSink
from sqap_vla_ros.nodes.policy.sinks.pose import PoseSink
from sqap_vla_ros.nodes.policy.sinks.sink import Sink
from sqap_vla_ros.nodes.policy.sinks.twist import TwistSink

SINKS: dict[str, type[Sink]] = {"joint": JointSink, "pose": PoseSink, "twist": TwistSink}
