"""The node table as a launch description. Only the launch files import it, for it needs `launch` and `launch_ros`."""

import os
import signal
from collections.abc import Callable

from launch import Action, LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteLocal,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.event_handlers import OnShutdown
from launch.events import Shutdown as ShutdownEvent
from launch.events import matches_action
from launch.events.process import SignalProcess
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from sqap_vla_ros.nodes.launch.table import BRINGUPS, Argument, Bringup, dds_environment, resolve


def launch_description(name: str) -> LaunchDescription:
    """Return the description of `BRINGUPS[name]`: its arguments, and its nodes once the arguments are known."""
    bringup = BRINGUPS[name]
    return LaunchDescription(
        [
            *(_declaration(argument) for argument in bringup.arguments),
            *(SetEnvironmentVariable(key, value) for key, value in dds_environment(os.environ).items()),
            OpaqueFunction(function=_nodes, args=[bringup]),
        ]
    )


def _declaration(argument: Argument) -> DeclareLaunchArgument:
    return DeclareLaunchArgument(
        argument.name,
        default_value=argument.default,
        description=argument.description,
        choices=argument.choices or None,
    )


def _nodes(context: LaunchContext, bringup: Bringup) -> list[LaunchDescriptionEntity]:
    given = {argument.name: context.launch_configurations[argument.name] for argument in bringup.arguments}
    nodes = [
        Node(
            package="sqap_vla_ros",
            executable=command.executable,
            namespace=command.namespace,
            parameters=[
                *map(str, command.params_files),
                {name: ParameterValue(value, value_type=type(value)) for name, value in command.parameters.items()},
            ],
            remappings=command.remappings,
            ros_arguments=["--log-level", command.log_level],
            output="screen",
            emulate_tty=True,
            on_exit=Shutdown(reason=f"{command.executable} ended"),
        )
        for command in resolve(bringup, given)
    ]
    return [*nodes, *(RegisterEventHandler(OnShutdown(on_shutdown=interrupt(node))) for node in nodes)]


def interrupt(process: ExecuteLocal) -> Callable[[ShutdownEvent, LaunchContext], list[Action]]:
    """Return what sends SIGINT to a process when launch is interrupted.

    With a terminal, launch relies on it to interrupt the nodes, and leaves them 5 s until SIGTERM. A SIGINT that was
    sent to launch alone, as by `docker stop`, does not reach them so. One that comes twice does not matter.
    """

    def send(event: ShutdownEvent, context: LaunchContext) -> list[Action]:
        if not event.due_to_sigint or process.process_details is None:
            return []
        return [EmitEvent(event=SignalProcess(signal_number=signal.SIGINT, process_matcher=matches_action(process)))]

    return send
