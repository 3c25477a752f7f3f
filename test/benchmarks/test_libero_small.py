"""The chain for a small LIBERO policy: amounts scale; a table goes on with what is missing and never mixes settings."""

import argparse
import importlib.util
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

OUTSIDE = Path(__file__).parents[2] / "benchmarks" / "outside"


def module(name):
    spec = importlib.util.spec_from_file_location(name, OUTSIDE / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


libero_table = module("libero_table")
libero_small = module("libero_small")

# The columns of vla-eval 0.8.0's database that are read.
SCHEMA = """
CREATE TABLE episode_results (task_name, episode_id, status, steps, context, failure_reason, failure_detail);
CREATE TABLE work_queue (item, task_idx, shard_id, done);
"""


def database(folder, results, queue):
    folder.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(folder / "recording-table.sqlite") as connection:
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO episode_results VALUES (?, ?, ?, ?, ?, ?, ?)", results)
        connection.executemany("INSERT INTO work_queue VALUES (?, ?, ?, ?)", queue)
    connection.close()


def result(task, episode, status, reason=None):
    context = json.dumps({"task_idx": task})
    return (f"task {task}", episode, status, 9, context, reason, reason and f"Traceback\n{reason}: broken")


def test_what_was_not_finished_and_what_failed_is_done_again(tmp_path):
    run = libero_table.Run(tmp_path)
    assert (run.progress(), run.finished(), run.records()) == ((0, 0), False, [])
    run.release()  # nothing to release before the first start
    # two tasks of two episodes: one solved, one that could not be run, one under way, one untouched
    results = [result(0, 0, "success"), result(0, 1, "error", "env_step")]
    database(tmp_path, results, [(0, 0, 0, 1), (1, 0, 1, 1), (2, 1, 1, 0), (3, 1, None, 0)])
    assert run.progress() == (2, 4)
    assert run.failure() == "task 0: env_step, env_step: broken"
    run.release()
    assert run.failure() == ""
    assert run.progress() == (1, 4)
    assert run.records() == [{"task": "task 0", "episode": 0, "success": True, "steps": 9}]
    with sqlite3.connect(tmp_path / "recording-table.sqlite") as connection:
        claims = connection.execute("SELECT item, shard_id FROM work_queue WHERE done = 0").fetchall()
        connection.execute("UPDATE work_queue SET done = 1")
    connection.close()
    assert claims == [(1, None), (2, None), (3, None)]
    assert run.finished()


def test_an_episode_that_was_repeated_counts_once(tmp_path):
    database(tmp_path, [result(0, 1, "fail"), result(0, 0, "success"), result(0, 1, "fail")], [(0, 0, 0, 1)])
    assert [r["episode"] for r in libero_table.Run(tmp_path).records()] == [0, 1]


def test_a_table_is_not_gone_on_with_under_other_settings(tmp_path):
    checkpoint = tmp_path / "policy.safetensors"
    checkpoint.write_bytes(b"one")
    settings = {"out": tmp_path, "checkpoint": checkpoint, "episodes": 20, "execution_horizon": 8}
    args = argparse.Namespace(**settings, max_tasks=None, max_steps=None)
    libero_table.same_settings(args)
    libero_table.same_settings(args)
    args.max_steps = 24
    with pytest.raises(SystemExit, match=r"another max_steps \(None, not 24\): choose another --out"):
        libero_table.same_settings(args)
    args.max_steps = None
    checkpoint.write_bytes(b"two")
    with pytest.raises(SystemExit, match="another checkpoint"):
        libero_table.same_settings(args)


def test_amounts_scale_and_a_trial_stops_early():
    whole, trial = libero_small.Amounts(), libero_small.Amounts().scaled(0.001)
    assert whole.scaled(1.0) == whole
    assert whole.episodes * libero_table.TASKS >= 200  # a row
    assert (trial.shards, trial.corrections, trial.checked, trial.episodes, trial.frames) == (1, 1, 1, 1, 8)
    assert "--max-steps" in trial.limits
    assert not whole.scaled(0.5).limits


def test_a_folder_is_not_gone_on_with_in_other_amounts(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBERO_VENV", str(tmp_path))
    made = []
    monkeypatch.setattr(libero_small, "run", lambda command: made.append(command))
    monkeypatch.setattr(libero_small, "environment_of_libero", lambda: tmp_path)
    monkeypatch.setattr(libero_small.Chain, "_libero", lambda _self, *arguments: made.append(arguments))
    args = argparse.Namespace(out=tmp_path / "small", scale=0.001, jobs=1, until="demonstrations")
    libero_small.make(args)
    libero_small.make(args)
    assert len(made) == 6  # the environment, the expert and the demonstrations, twice
    args.scale = 1.0
    with pytest.raises(SystemExit, match=r"small was begun with another shards \(1, not 80\): choose another --out"):
        libero_small.make(args)
    args.scale = 0.002  # the same amounts but for the training, which would go on from the shorter one's end
    with pytest.raises(SystemExit, match=r"another training \(0.001, not 0.002\)"):
        libero_small.make(args)
    assert len(made) == 6


def test_a_command_that_is_interrupted_is_ended(tmp_path):
    mark = tmp_path / "ended"
    child = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path({str(mark)!r}).touch()))
pathlib.Path({str(tmp_path / "started")!r}).touch()
time.sleep(60)
"""
    parent = "import sys; sys.path.insert(0, sys.argv[1]); import libero_table as t\n"
    parent += "with t.signals_raise():\n    t.run([sys.executable, '-c', sys.argv[2]])"
    process = subprocess.Popen([sys.executable, "-c", parent, OUTSIDE, child])
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    assert mark.exists()
    with pytest.raises(subprocess.CalledProcessError):
        libero_table.run([sys.executable, "-c", "raise SystemExit(3)"])
