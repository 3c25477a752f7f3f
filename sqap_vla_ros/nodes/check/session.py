"""A node that stands in for policy_node: its name, namespace, remappings and parameters."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from sqap_vla_ros.nodes.launch.params_files import values_for
from sqap_vla_ros.nodes.launch.table import BRINGUPS, NodeCommand, dds_environment, resolve
from sqap_vla_ros.nodes.policy import configuration


@contextlib.contextmanager
def standing_in(given: Mapping[str, str]) -> Iterator[tuple[Node, dict[str, Any]]]:
    """Provide the node and the values of policy_node's parameters.

    given: arguments of policy.launch.py. Raises ValueError and OSError for wrong arguments and parameter files.
    """
    (command,) = resolve(BRINGUPS["policy"], given)
    os.environ.update(dds_environment(os.environ))
    context = rclpy.Context()
    try:
        # Ctrl-C is Python's KeyboardInterrupt here: there is nothing to bring to rest.
        rclpy.init(args=command.ros_arguments(), context=context, signal_handler_options=SignalHandlerOptions.NO)
    except _rclpy.RCLError as error:
        raise ValueError(_refusal(str(error))) from error
    node = None
    try:
        # The name of the node that it stands in for, so that sections of parameter files with that name hold here too.
        node = Node("policy_node", context=context, enable_rosout=False, start_parameter_services=False)
        configuration.declare(node, read_only=True)
        yield node, _read(node, command)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ValueError(str(error)) from error
    finally:
        if node is not None:
            node.destroy_node()
        context.try_shutdown()


def _read(node: Node, command: NodeCommand) -> dict[str, Any]:
    """Return the node's parameters. Raises ValueError naming every wrong one, and the file that gives it."""
    try:
        return configuration.read(node)
    except ValueError as error:
        text = str(error)
        from_file = {  # later files win, and arguments over all
            name: path
            for path in command.params_files
            for name in values_for(path, command.executable)
            if name not in command.parameters and re.search(rf"\b{re.escape(name)}\b", text)
        }
        for path in dict.fromkeys(from_file.values()):
            text += f" ({', '.join(name for name, file in from_file.items() if file == path)}: {path})"
        raise ValueError(text) from error


def _refusal(text: str) -> str:
    """Return what rcl says about a parameter file, a topic or a namespace, without the places in its own source."""
    said = text.partition(", at /")[0].removeprefix("failed to initialize rcl: ").strip()
    remedy = " (a list of numbers needs a decimal point in each: 2.0, not 2)" if "of same type" in said else ""
    return f"ROS refuses an argument: {' '.join(said.split())}{remedy}"
