"""LIBERO with few pictures: the actions that are served and the episodes are those of vla-eval with every picture."""

import importlib.util
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

OUTSIDE = Path(__file__).parents[2] / "benchmarks" / "outside"
SPEC = importlib.util.spec_from_file_location("libero_table", OUTSIDE / "libero_table.py")
libero_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(libero_table)
VENV = Path(os.environ.get("LIBERO_VENV", "nowhere"))

pytestmark = [
    pytest.mark.skipif(
        not (VENV / "bin" / "vla-eval").is_file(),
        reason="needs LIBERO's environment: benchmarks/outside/libero.sh makes it; name it in LIBERO_VENV",
    ),
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

HORIZON, STEPS = 8, 17
DRIVER = """
import sys
import numpy as np
from vla_eval.benchmarks.libero_pro.benchmark import LIBEROProBenchmark
from vla_eval.recording import NullEpisodeRecorder
from libero_benchmark import OneCamera

out, every, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
suite = "libero_object_swap"
if every == "original":
    world = LIBEROProBenchmark(suite=suite, send_state=True)
else:
    world = OneCamera(suite=suite, send_state=True, picture_every=int(every))
world._recorder = NullEpisodeRecorder()
task = world.get_tasks()[0]
states, pictures = [], []
for episode in (2, 1):
    seen, rng = world.reset({**task, "episode_idx": episode}), np.random.default_rng(episode)
    for _ in range(steps):
        sent = world.make_obs(seen, task)
        data = world._env.sim.data
        states.append(np.concatenate([sent["states"], sent["controller_states"], data.qpos, data.qvel]))
        pictures.append(sent["images"]["agentview"])
        seen = world.step({"actions": rng.uniform(-1, 1, 7)}).obs
np.savez(out, states=states, pictures=pictures)
"""


def driven(tmp_path, every):
    """States [2 * STEPS, numbers] and pictures of two episodes under the same random actions."""
    out = tmp_path / f"{every}.npz"
    command = [VENV / "bin" / "python", "-c", DRIVER, out, every, STEPS]
    environment = libero_table.environment(tmp_path) | {"PYOPENGL_PLATFORM": "osmesa"}
    subprocess.run([*map(str, command)], check=True, env=environment, input="n\n", text=True)
    found = np.load(out)
    return found["states"], found["pictures"]


def test_the_world_is_the_same_whatever_is_rendered(tmp_path):
    states, pictures = driven(tmp_path, HORIZON)
    every_states, every_pictures = driven(tmp_path, 1)
    np.testing.assert_array_equal(states, every_states)
    step = np.arange(2 * STEPS) % STEPS
    looked_at = step % HORIZON == 0
    np.testing.assert_array_equal(pictures[looked_at], every_pictures[looked_at])
    np.testing.assert_array_equal(pictures[~looked_at], pictures[np.arange(2 * STEPS) - step % HORIZON][~looked_at])
    assert (pictures[~looked_at] != every_pictures[~looked_at]).any()  # so that the picture could not be spared unseen

    # vla-eval compiles the model for each episode, and its solver begins with what a random layout left
    original_states, original_pictures = driven(tmp_path, "original")
    np.testing.assert_allclose(states, original_states, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(every_pictures, original_pictures)


def test_what_is_served_and_what_becomes_of_it_is_the_same_to_the_bit(tmp_path):
    camera = tmp_path / "camera.json"
    pose = {"position": [1.0, 0.0, 1.0], "rotation": [0, 0, 1, 1, 0, 0, 0, 1, 0], "fovy_deg": 45.0}
    camera.write_text(json.dumps({**pose, "width": 256, "height": 256}))
    entries = [
        {
            "benchmark": "libero_benchmark:OneCamera",
            "subname": f"every{every}",
            "episodes_per_task": 2,
            "max_tasks": 1,
            "max_steps": STEPS,
            "params": {"suite": "libero_object", "send_state": True, "picture_every": every},
        }
        for every in (1, HORIZON)
    ]
    config = tmp_path / "run.json"
    with libero_table.served(Path("micro"), "fp32", camera, HORIZON, [tmp_path / "serve.log"]) as (url,):
        config.write_text(json.dumps({"server": {"url": url, "timeout": 300}, "benchmarks": entries}))
        command = [VENV / "bin" / "vla-eval", "run", "--no-docker", "--render", "cpu", "--config", config]
        command += ["--output-dir", tmp_path, "--eval-id", "both"]
        subprocess.run([*map(str, command)], check=True, env=libero_table.environment(tmp_path), input="n\n", text=True)
    with sqlite3.connect(tmp_path / "recording-both.sqlite") as recording:
        every, few = (
            recording.execute(
                "SELECT episode_id, status, steps, step_id, fields FROM episode_results "
                "JOIN step_rows USING (sid, eid) WHERE eval_id LIKE ? ORDER BY episode_id, step_id",
                (f"%every{one}",),
            ).fetchall()
            for one in (1, HORIZON)
        )
    recording.close()
    assert len(few) == 2 * STEPS
    assert few == every
    actions = {str(json.loads(fields)["action"]) for *_, fields in few}
    assert len(actions) > STEPS  # the policy's, which differ from step to step
