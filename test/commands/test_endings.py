"""A command that is ended ends what it started: on SIGTERM, SIGHUP and a killed parent."""

import os
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
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def workers(group: int) -> list[int]:
    return [pid for pid, command in members(group).items() if "spawn_main" in command]


@pytest.mark.parametrize(
    ("command", "count", "number", "status"),
    [
        (EVALUATE, 1, signal.SIGTERM, 143),
        (EVALUATE, 1, signal.SIGHUP, 129),
        (EVALUATE, 1, signal.SIGKILL, -9),
        (REPLAY, 2, signal.SIGTERM, 143),
        (REPLAY, 2, signal.SIGHUP, 129),
        (REPLAY, 2, signal.SIGKILL, -9),
        (TRAIN, 2, signal.SIGTERM, 143),
        (TRAIN, 2, signal.SIGHUP, 129),
        (TRAIN, 2, signal.SIGKILL, -9),
        (COMPRESS, 0, signal.SIGTERM, 143),
        (COMPRESS, 0, signal.SIGHUP, 129),
        (COMPRESS, 0, signal.SIGKILL, -9),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else getattr(value, "name", str(value)),
)
def test_nothing_is_left_running(tmp_path, command, count, number, status):
    bags = []
    if command[0] == "replay":
        for name in ("a", "b"):
            shutil.copytree(TABLETOP_BAG, tmp_path / name)
            bags.append(str(tmp_path / name))
    out = tmp_path / ("out.safetensors" if command is COMPRESS else "out")
    process = start([command[0], *bags, *command[1:], "--out", str(out)])
    try:
        wait(lambda: process.poll() is not None or len(workers(process.pid)) >= count, "no worker was started")
        assert process.poll() is None, process.stderr.read()
        time.sleep(2.0)  # the workers are importing or at work
        os.kill(process.pid, number)
        process.wait(60)
        wait(lambda: not members(process.pid), f"still running: {members(process.pid)}", 30.0)
        errors = process.stderr.read()
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == status
    if number != signal.SIGKILL:
        assert "terminated: the same command goes on from here" in errors
        assert "Traceback" not in errors
    assert command is not COMPRESS or not out.exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)], ids=str
)
def test_nothing_is_left_running_over_ray(tmp_path, number, status):
    """Ray starts its own daemons, in sessions of their own; they are known by a variable that all inherit."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sqap-vla-ros[cluster]'")
    mark = f"ENDINGS_MARK={tmp_path}"
    process = start([*EVALUATE, "--ray", "local", "--out", str(tmp_path / "out")], ENDINGS_MARK=str(tmp_path))
    try:
        wait(lambda: process.poll() is not None or len(marked(mark)) > 4, "Ray started no worker")
        assert process.poll() is None, process.stderr.read()
        time.sleep(5.0)
        os.kill(process.pid, number)
        process.wait(60)
        # Ray's own agent outlives a killed driver by minutes, and computes nothing
        wait(lambda: not [c for c in marked(mark).values() if "DashboardAgent" not in c], "still running", 60.0)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == status


@pytest.mark.parametrize("code", [1, int(signal.SIGTERM)])
def test_an_end_while_ray_starts_has_the_status_of_any_other(monkeypatch, code):
    """Ray's handlers of SIGTERM, which are in place meanwhile, leave with statuses of their own."""
    ray = SimpleNamespace(init=lambda **_: sys.exit(code), shutdown=MagicMock())
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(Terminated) as error, ray_cluster("local"):
        pass
    assert error.value.code == 143
    ray.shutdown.assert_called_once_with()


def test_a_closed_pipe_is_quiet():
    command = f"{sys.executable} -c '{RUN}' bops --json | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""
