"""A SIGINT for launch alone, as from `docker stop`, reaches its nodes at once, with a terminal too."""

import os
import signal
import sys
import time

import pytest

pytest.importorskip("launch_ros", reason="launch_ros is not installed (ROS 2 from wheels has none)")

from launch import LaunchDescription, LaunchService
from launch.actions import ExecuteProcess, RegisterEventHandler
from launch.event_handlers import OnProcessStart, OnShutdown

from sqap_vla_ros.nodes.launch.description import interrupt

NODE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
try:
    print("up", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(0)
"""


def test_an_interrupted_launch_interrupts_its_nodes_whether_or_not_it_has_a_terminal():
    for noninteractive in (False, True):
        process = ExecuteProcess(cmd=[sys.executable, "-c", NODE])
        interrupted_s = []

        def stop(event, context, at=interrupted_s):
            time.sleep(1.0)  # until Python is up
            at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        service = LaunchService(noninteractive=noninteractive)
        service.include_launch_description(
            LaunchDescription(
                [
                    process,
                    RegisterEventHandler(OnShutdown(on_shutdown=interrupt(process))),
                    RegisterEventHandler(OnProcessStart(target_action=process, on_start=stop)),
                ]
            )
        )
        service.run()
        assert process.return_code == 0
        assert time.monotonic() - interrupted_s[0] < 4.0
