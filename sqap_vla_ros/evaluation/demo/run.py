"""A simulated arm under the compressed policy over real ROS 2 topics; a film, a report, numbers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sqap_vla_ros.contracts import TRAINED_POLICY

RECIPE = "coverage_w4a8"
LOAD_TIMEOUT_S = 900.0
FIRST_CHUNK_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 30.0
AFTER_SUCCESS_S = 1.5  # so that the film shows it


class DemoFailed(ValueError):
    """The run did not do what a demonstration must; the message says what and why."""


@dataclass(frozen=True)
class DemoOptions:
    """One demonstration. duration_s: longest episode; instruction and task: at most one of them.

    gripper: the node's gripper_output; "" takes its default.
    """

    out: Path
    instruction: str = ""
    task: str = ""
    seed: int = 0
    episodes: int = 1
    duration_s: float = 20.0
    checkpoint: str = TRAINED_POLICY
    recipe: str = RECIPE
    gripper: str = ""
    quiet: bool = False


def run_demo(options: DemoOptions) -> None:
    """Run the demonstration. Raises DemoFailed where the arm did not move under the policy."""
    if not 1.0 <= options.duration_s <= 3600.0:
        raise ValueError(f"--duration must be from 1 to 3600 seconds, got {options.duration_s:g}")
    if not 1 <= options.episodes <= 100:
        raise ValueError(f"--episodes must be from 1 to 100, got {options.episodes}")
    if options.instruction and options.task:
        raise ValueError("--instruction says what the task is: --task cannot be given beside it")
    if options.instruction:
        from sqap_vla_ros.simulation.tasks import parse_instruction

        parse_instruction(options.instruction)  # before anything is started
    from sqap_vla_ros.evaluation.demo.film import Film
    from sqap_vla_ros.evaluation.demo.report import summary_text, write_report
    from sqap_vla_ros.evaluation.demo.selections import selections_of_all_images
    from sqap_vla_ros.policy.checkpoints.writing import check_folder

    _prepare_environment()
    check_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    recording = _record(options)
    if not recording.images:
        raise DemoFailed("no camera image was received from the simulator")
    print("writing the film and the report ...", flush=True)
    show = not options.quiet
    film = Film(recording, selections_of_all_images(recording, options.checkpoint, options.recipe, show=show))
    film.write(options.out / "demo.mp4", show=show)
    summary = write_report(film, options.out)
    print(f"\n{summary_text(summary)}")
    for name in ("demo.mp4", "demo.webp", "report.html", "report.png", "report.json"):
        print(f"  {options.out / name}")
    if not recording.commands:
        raise DemoFailed(f"the policy never commanded the arm: {_last_reason(recording)}")


def _record(options: DemoOptions) -> Any:
    from sqap_vla_ros.nodes.launch.bringup import NodeProcesses
    from sqap_vla_ros.nodes.launch.table import BRINGUPS
    from sqap_vla_ros.nodes.recorder.run_recorder import RunRecorder
    from sqap_vla_ros.resources import share_path

    given = {"checkpoint": options.checkpoint, "recipe": options.recipe, "seed": str(options.seed)}
    given |= {"task": options.task, "instruction": options.instruction, "gripper_output": options.gripper}
    given |= {"log_level": "warn", "params_file": str(share_path("config/demo.yaml"))}
    print("starting simulator_node and policy_node, loading the policy ...", flush=True)
    with RunRecorder() as recorder, NodeProcesses(BRINGUPS["simulation"], given) as nodes:

        def check() -> None:
            if ended := nodes.ended():
                names = ", ".join(f"{name} (exit status {code})" for name, code in ended.items())
                raise DemoFailed(f"ended by itself: {names}; its messages are above")

        try:
            for episode in range(options.episodes):
                if episode:
                    recorder.control.reset(ANSWER_TIMEOUT_S, check=check)
                recorder.begin(LOAD_TIMEOUT_S, check=check)
                _watch(recorder, options, f"{episode + 1}/{options.episodes} " if options.episodes > 1 else "", check)
                recorder.end(ANSWER_TIMEOUT_S, check=check)  # the arm is held before the nodes go
                if not recorder.chunks:
                    break
        except TimeoutError as error:
            raise DemoFailed(str(error)) from error
        recording = recorder.finish()
        if not recording.chunks:
            raise DemoFailed(f"the policy published no chunk: {_last_reason(recording)}")
    return recording


def _watch(recorder: Any, options: DemoOptions, prefix: str, check: Callable[[], None]) -> None:
    """Wait until the task is done and a moment longer, or its time is over."""
    from sqap_vla_ros.nodes.recorder.run_recorder import STATES

    begin = time.monotonic()
    until, done_s = begin + options.duration_s, None
    bar_format = "{desc}|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    with tqdm(total=options.duration_s, disable=options.quiet, bar_format=bar_format) as bar:
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
    """Return what the policy node said last while it was enabled."""
    reasons = (reason for _, state, reason in reversed(recording.states) if reason and state != "DISABLED")
    return next(reasons, "no reason was given")


def _prepare_environment() -> None:
    """Keep to a DDS domain that other robots of the network are not in, with the profile that lets images through."""
    from sqap_vla_ros.nodes.launch.table import dds_environment

    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(dds_environment(os.environ))
