"""`check`: one go/no-go before the first motion. It only reads; the arm is not commanded.

ros2 run sqap_vla_ros check robot:=ur5e image:=/camera/image_raw camera_info:=/camera/camera_info
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rich.console import Console

from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.nodes.check import picture
from sqap_vla_ros.nodes.check.collector import Collector
from sqap_vla_ros.nodes.check.finding import warning
from sqap_vla_ros.nodes.check.options import DESCRIPTION, add_options
from sqap_vla_ros.nodes.check.report import Report, Row, examine
from sqap_vla_ros.nodes.check.snapshot import Snapshot
from sqap_vla_ros.nodes.check.table import CHECKS
from sqap_vla_ros.nodes.check.trial import try_policy
from sqap_vla_ros.nodes.launch.table import BRINGUPS, dds_environment, resolve
from sqap_vla_ros.nodes.policy import configuration
from sqap_vla_ros.nodes.policy.observer import View


def run(args: argparse.Namespace) -> int:
    """Check the robot and print the report; return the exit status.

    Raises ValueError and OSError for arguments and parameter files that are wrong.
    """
    given = {}
    for text in args.arguments:
        name, separator, value = text.partition(":=")
        if not separator or not name:
            raise ValueError(f"{text!r} is not of the form name:=value (quote a value with spaces)")
        given[name] = value
    snapshot = _gather(given, args.listen)
    if not args.without_policy:
        view = snapshot.view
        observation = view.observation if isinstance(view, View) else None
        if observation is not None and not observation.instruction:
            observation = Observation(
                observation.image, observation.stamp_ns, "check", observation.gripper_pixel, observation.base_from_tool
            )
        snapshot = dataclasses.replace(snapshot, trial=try_policy(snapshot.values, observation))
    rows, shown = examine(snapshot, CHECKS), ""
    if (drawn := picture.draw(snapshot)) is not None:
        try:
            picture.save(drawn, args.picture)
            shown = str(args.picture)
        except OSError as error:  # the findings are worth more
            rows = (*rows, Row("picture", warning(str(error), "name another file with --picture")))
    report = Report(rows, shown)
    if args.json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        report.print(Console())
    return 0 if report.go else 1


def _gather(given: Mapping[str, str], listen_s: float) -> Snapshot:
    (command,) = resolve(BRINGUPS["policy"], given)
    os.environ.update(dds_environment(os.environ))
    context = rclpy.Context()
    # Ctrl-C is Python's KeyboardInterrupt here: there is nothing to bring to rest.
    rclpy.init(args=command.ros_arguments(), context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = None
    try:
        # The name of the node that it stands in for, so that sections of parameter files with that name hold here too.
        node = Node("policy_node", context=context, enable_rosout=False, start_parameter_services=False)
        configuration.declare(node)
        values = configuration.read(node)
        return Collector(node, values).collect(listen_s)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise ValueError(str(error)) from error
    finally:
        if node is not None:
            node.destroy_node()
        context.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="check", description=DESCRIPTION)
    add_options(parser)
    try:
        return run(parser.parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
