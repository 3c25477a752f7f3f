"""`sqap-vla demo`: a simulated arm under the compressed policy over real ROS 2 topics; a film, a report, numbers."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOAD_TIMEOUT_S = 900.0
FIRST_CHUNK_TIMEOUT_S = 30.0


class DemoFailed(ValueError):
    """The run did not do what a demonstration must: says what and why."""


def add_demo(subparsers: Any) -> None:
    """Add the `demo` sub-command."""
    parser = subparsers.add_parser(
        "demo",
        help="a simulated arm under the compressed policy: film, report, numbers",
        description="Starts simulator_node and policy_node, enables the policy, records the run and reports on it.",
    )
    parser.add_argument("--checkpoint", default="micro", help="CogACT folder, compressed file or 'micro' (default)")
    parser.add_argument("--recipe", default="", help="how the policy is compressed (default: what the node takes)")
    parser.add_argument("--task", default="", help="kind of task in the simulation (default: drawn by the seed)")
    parser.add_argument("--seed", type=int, default=0, help="layout of the scene (default 0)")
    parser.add_argument("--duration", type=float, default=20.0, metavar="S", help="seconds to run (default 20)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default out/demo)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration. Raises DemoFailed where the arm did not move under the policy."""
    if not 1.0 <= args.duration <= 3600.0:
        raise ValueError(f"--duration must be from 1 to 3600 seconds, got {args.duration:g}")
    from sqap_vla_ros.evaluation.demo_report import summary_text, write_report
    from sqap_vla_ros.evaluation.demo_video import write_video

    _prepare_environment()
    args.out.mkdir(parents=True, exist_ok=True)
    recording = _record(args)
    if not recording.images:
        raise DemoFailed("no camera image was received from the simulator")
    print("writing the video and the report ...")
    write_video(recording, args.out / "demo.mp4", show=not args.quiet)
    summary = write_report(recording, args.out)
    print(f"\n{summary_text(summary)}")
    for name in ("demo.mp4", "demo.webp", "report.html", "report.png", "report.json"):
        print(f"  {args.out / name}")
    if not recording.commands:
        why = next((reason for _, _, reason in reversed(recording.states) if reason), "no reason was given")
        raise DemoFailed(f"the policy never commanded the arm: {why}")
    return 0


def _record(args: argparse.Namespace) -> Any:
    from sqap_vla_ros.nodes.bringup import NodeProcesses
    from sqap_vla_ros.nodes.node_table import BRINGUPS
    from sqap_vla_ros.nodes.run_recorder import STATES, RunRecorder
    from sqap_vla_ros.resources import share_path

    given = {"checkpoint": args.checkpoint, "recipe": args.recipe, "task": args.task, "seed": str(args.seed)}
    given |= {"log_level": "warn", "params_file": str(share_path("config/demo.yaml"))}
    print("starting simulator_node and policy_node, loading the policy ...", flush=True)
    with RunRecorder() as recorder, NodeProcesses(BRINGUPS["simulation"], given) as nodes:

        def check() -> None:
            if ended := nodes.ended():
                names = ", ".join(f"{name} (exit status {code})" for name, code in ended.items())
                raise DemoFailed(f"ended by itself: {names}; its messages are above")

        try:
            recorder.enable(True, LOAD_TIMEOUT_S, check=check)
        except TimeoutError as error:
            raise DemoFailed(str(error)) from error
        begin = time.monotonic()
        with tqdm(
            total=args.duration,
            unit="s",
            disable=args.quiet,
            bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s [{postfix}]",
        ) as bar:
            while (elapsed := time.monotonic() - begin) < args.duration:
                check()
                status = recorder.status
                state = STATES[status.state] if status is not None else "no status"
                if elapsed > FIRST_CHUNK_TIMEOUT_S and not recorder.chunks:
                    break
                bar.set_description(state.lower())
                bar.set_postfix_str(f"{recorder.images} images, {recorder.chunks} chunks", refresh=False)
                bar.update(elapsed - bar.n)
                time.sleep(0.1)
        recording = recorder.finish()
        if not recording.chunks:
            why = recorder.status.reason if recorder.status is not None else "policy_node published no status"
            raise DemoFailed(f"the policy published no chunk: {why or 'no reason was given'}")
        recorder.enable(False, 10.0, check=check)  # the arm is held before the nodes go
    return recording


def _prepare_environment() -> None:
    """A DDS domain that other robots in the network are not in, and the profile that lets images through."""
    from sqap_vla_ros.nodes.node_table import dds_environment

    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
