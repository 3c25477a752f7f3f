"""`sqap-vla demo`: a simulated arm under the compressed policy over real ROS 2 topics; a film, a report, numbers."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

CHECKPOINT, RECIPE = "tabletop", "sqap"
LOAD_TIMEOUT_S = 900.0
FIRST_CHUNK_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
AFTER_SUCCESS_S = 1.5  # so that the film shows it


class DemoFailed(ValueError):
    """The run did not do what a demonstration must: says what and why."""


def add_demo(subparsers: Any) -> None:
    """Add the `demo` sub-command."""
    parser = subparsers.add_parser(
        "demo",
        help="a simulated arm under the compressed policy: film, report, numbers",
        description="Starts simulator_node and policy_node, enables the policy, records the run and reports on it.",
    )
    parser.add_argument("--instruction", default="", help="the task in words, such as 'pick up the red cube'")
    parser.add_argument("--task", default="", help="kind of task (default: drawn by the seed)")
    parser.add_argument("--seed", type=int, default=0, help="layout of the first scene (default 0)")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="scenes, one after the other (default 1)")
    parser.add_argument("--duration", type=float, default=20.0, metavar="S", help="longest episode (default 20 s)")
    parser.add_argument("--checkpoint", default=CHECKPOINT, help=f"CogACT folder or file (default {CHECKPOINT})")
    parser.add_argument("--recipe", default=RECIPE, help="how the policy is compressed")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default out/demo)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration. Raises DemoFailed where the arm did not move under the policy."""
    if not 1.0 <= args.duration <= 3600.0:
        raise ValueError(f"--duration must be from 1 to 3600 seconds, got {args.duration:g}")
    if not 1 <= args.episodes <= 100:
        raise ValueError(f"--episodes must be from 1 to 100, got {args.episodes}")
    if args.instruction and args.task:
        raise ValueError("--instruction says what the task is: --task cannot be given beside it")
    if args.instruction:
        from sqap_vla_ros.simulation.tasks import parse_instruction

        parse_instruction(args.instruction)  # before anything is started
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
        raise DemoFailed(f"the policy never commanded the arm: {_last_reason(recording)}")
    return 0


def _record(args: argparse.Namespace) -> Any:
    from sqap_vla_ros.nodes.bringup import NodeProcesses
    from sqap_vla_ros.nodes.node_table import BRINGUPS
    from sqap_vla_ros.nodes.run_recorder import RunRecorder
    from sqap_vla_ros.resources import share_path

    given = {"checkpoint": args.checkpoint, "recipe": args.recipe, "seed": str(args.seed)}
    given |= {"task": args.task, "instruction": args.instruction}
    given |= {"log_level": "warn", "params_file": str(share_path("config/demo.yaml"))}
    print("starting simulator_node and policy_node, loading the policy ...", flush=True)
    with _sigterm_raises(), RunRecorder() as recorder, NodeProcesses(BRINGUPS["simulation"], given) as nodes:

        def check() -> None:
            if ended := nodes.ended():
                names = ", ".join(f"{name} (exit status {code})" for name, code in ended.items())
                raise DemoFailed(f"ended by itself: {names}; its messages are above")

        try:
            for episode in range(args.episodes):
                if episode:
                    recorder.control.reset(ANSWER_TIMEOUT_S, check=check)
                recorder.begin(LOAD_TIMEOUT_S, check=check)
                _watch(recorder, args, f"{episode + 1}/{args.episodes} " if args.episodes > 1 else "", check)
                recorder.end(ANSWER_TIMEOUT_S, check=check)  # the arm is held before the nodes go
                if not recorder.chunks:
                    break
        except TimeoutError as error:
            raise DemoFailed(str(error)) from error
        recording = recorder.finish()
        if not recording.chunks:
            raise DemoFailed(f"the policy published no chunk: {_last_reason(recording)}")
    return recording


def _watch(recorder: Any, args: argparse.Namespace, prefix: str, check: Callable[[], None]) -> None:
    """Until the task is done and a moment longer, or its time is over."""
    from sqap_vla_ros.nodes.run_recorder import STATES

    begin = time.monotonic()
    until, done_s = begin + args.duration, None
    bar_format = "{desc}|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=args.duration, disable=args.quiet, bar_format=bar_format) as bar:
        while (now := time.monotonic()) < until:
            check()
            state = STATES[recorder.status.state].lower() if recorder.status is not None else "no status"
            if recorder.control.done_ns is not None:
                done_s = now if done_s is None else done_s
                until = min(until, done_s + AFTER_SUCCESS_S)
                state = "done"
            bar.set_description_str(f"{prefix}{recorder.control.instruction}: {state} ", refresh=False)
            if now - begin > FIRST_CHUNK_TIMEOUT_S and not recorder.chunks:
                return
            bar.set_postfix_str(f"{recorder.images} images, {recorder.chunks} chunks", refresh=False)
            bar.update(now - begin - bar.n)
            time.sleep(0.1)


def _last_reason(recording: Any) -> str:
    """What the policy node said last while it was enabled."""
    reasons = (reason for _, state, reason in reversed(recording.states) if reason and state != "DISABLED")
    return next(reasons, "no reason was given")


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the nodes as Ctrl-C does, instead of leaving them behind."""
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _prepare_environment() -> None:
    """A DDS domain that other robots in the network are not in, and the profile that lets images through."""
    from sqap_vla_ros.nodes.node_table import dds_environment

    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
