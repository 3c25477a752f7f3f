"""A command that is ended ends what it started: on SIGTERM, SIGHUP and a killed parent."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from places import TABLETOP_BAG

from sqap_vla_ros.evaluation.ray_cluster import ray_cluster
from sqap_vla_ros.processes import Terminated

RUN = "import sys; from sqap_vla_ros.cli import main; sys.exit(main(sys.argv[1:]))"
EVALUATE = ("evaluate", "--checkpoint", "micro", "--recipes", "fp32", "--families", "pick", "--episodes", "200")
REPLAY = ("replay", "--recipes", "fp32", "--threads", "1", "--no-video", "--jobs", "2")
TRAIN = ("train", "--scale", "0.001", "--quiet")
ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGKILL: -9}  # how a command is ended -> its exit status
COMPRESS = ("compress", "--checkpoint", "tabletop", "--recipe", "sqap", "--calibration", str(TABLETOP_BAG))


def members(group: int) -> dict[int, str]:
    """Process id -> command line of what runs in a process group; what ended and was not waited for does not."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return found


def marked(mark: str) -> dict[int, str]:
    """Process id -> command line of what runs with this variable in its environment."""
    found = {}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_text().split("\0"):
                found[int(environ.parent.name)] = (environ.parent / "cmdline").read_text().replace("\0", " ")
        except (OSError, UnicodeDecodeError):
            continue
    return found


def left(mark: str) -> list[str]:
    """Return the marked command lines, without Ray's own agents, which outlive a killed driver by minutes, idle."""
    return [command for command in marked(mark).values() if not re.match(r"ray::(Dashboard|RuntimeEnv)Agent", command)]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command in a session of its own. Whatever the tests run under, a hang-up is not ignored in it."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def wait(condition, what, timeout_s=120.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, what() if callable(what) else what
        time.sleep(0.1)


def workers(group: int) -> list[int]:
    return [pid for pid, command in members(group).items() if "spawn_main" in command]


@pytest.mark.parametrize(
    ("command", "count"),
    [(EVALUATE, 1), (REPLAY, 2), (TRAIN, 2), (COMPRESS, 0)],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_nothing_is_left_running(tmp_path, command, count):
    """One process for each way to end, all at the same time."""
    bags = []
    if command[0] == "replay":
        for name in ("a", "b"):
            shutil.copytree(TABLETOP_BAG, tmp_path / name)
            bags.append(str(tmp_path / name))
    outs = {number: tmp_path / f"{number.name}.safetensors" for number in ENDS}
    started = {n: start([command[0], *bags, *command[1:], "--out", str(out)]) for n, out in outs.items()}
    try:
        for process in started.values():
            wait(lambda p=process: p.poll() is not None or len(workers(p.pid)) >= count, "no worker was started")
            assert process.poll() is None, process.stderr.read()
        time.sleep(2.0)  # the workers are importing or at work
        for number, process in started.items():
            os.kill(process.pid, number)
        for number, process in started.items():
            process.wait(60)
            wait(lambda p=process: not members(p.pid), lambda p=process: f"still running: {members(p.pid)}", 30.0)
            errors = process.stderr.read()
            assert process.returncode == ENDS[number]
            assert "resource_tracker" not in errors  # Python's own warning, of no use to a user
            if number != signal.SIGKILL:
                assert "terminated: the same command goes on from here" in errors
                assert "Traceback" not in errors
            assert command is not COMPRESS or not outs[number].exists()
    finally:
        for process in started.values():
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), ENDS.items(), ids=str)
def test_nothing_is_left_running_over_ray(tmp_path, number, status):
    """Ray starts its own daemons, in sessions of their own; they are known by a variable that all inherit."""
    pytest.importorskip(
        "ray", reason="Ray is not installed: `make ray` runs these tests with Ray in a folder of its own"
    )
    mark = f"ENDINGS_MARK={tmp_path}"
    process = start([*EVALUATE, "--ray", "local", "--out", str(tmp_path / "out")], ENDINGS_MARK=str(tmp_path))
    try:
        wait(lambda: process.poll() is not None or len(marked(mark)) > 4, "Ray started no worker")
        assert process.poll() is None, process.stderr.read()
        time.sleep(5.0)
        os.kill(process.pid, number)
        process.wait(60)
        wait(lambda: not left(mark), lambda: f"still running: {left(mark)}", 60.0)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == status


def hung_up():
    """Ray's compiled code replaces what a handler raises."""
    with contextlib.suppress(Terminated):
        os.kill(os.getpid(), signal.SIGHUP)
    sys.exit(1)


@pytest.mark.parametrize(("end", "status"), [(lambda: sys.exit(1), 143), (lambda: sys.exit(15), 143), (hung_up, 129)])
@pytest.mark.parametrize("starting", [True, False])
def test_an_end_has_its_status_whatever_ray_makes_of_it(monkeypatch, end, status, starting):
    """Ray's handlers of SIGTERM, which are in place while it starts, leave with statuses of their own."""
    ray = SimpleNamespace(init=lambda **_: end() if starting else None, shutdown=MagicMock())
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(Terminated) as error, ray_cluster("local"):
            end()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert error.value.code == status
    ray.shutdown.assert_called_once_with()


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -c '{RUN}' bops --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""
