"""A policy's server is lost in the middle of a replay: it stops in one sentence, and goes on with the next one."""

import functools
import json
import threading
import time

import pytest
from bag_factory import write_bag

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.served import Served

from sqap_vla_ros import cli
from sqap_vla_ros.evaluation.replay import run as replay_run
from sqap_vla_ros.evaluation.replay.jobs import ReplayJob, run_jobs
from sqap_vla_ros.evaluation.replay.metrics import summarise
from sqap_vla_ros.evaluation.replay.run import FRAMES, ReplayError, ServerLost, replay_recipe
from sqap_vla_ros.evaluation.replay.tables import MEASURES
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.serving import worker as serving_worker
from sqap_vla_ros.serving.worker import WorkerConfig

SPEC = ReplaySpec()
LOST = r"^ws://127\.0\.0\.1:\d+/native .*; start the server again where it is gone: the same command goes on from here$"
WAIT_S = 60.0


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("bags") / "demo", frames=6)


def config(url, timeout_s=3.0):
    return WorkerConfig(url, warmup=0, prediction_timeout_s=timeout_s)


def indices(folder):
    return [json.loads(line)["index"] for line in (folder / FRAMES).read_text().splitlines()]


def after(monkeypatch, frames, happens):
    """Let something happen when so many frames were predicted."""
    real, seen = replay_run._predicted, []

    def predicted(*args):
        seen.append(args)
        if len(seen) == frames:
            happens()
        return real(*args)

    monkeypatch.setattr(replay_run, "_predicted", predicted)


@pytest.mark.parametrize("how", ["is gone", "stands still"])
def test_a_lost_server_ends_the_replay_and_the_same_one_goes_on(bag, tmp_path, monkeypatch, capfd, how):
    folder = tmp_path / "r"
    with Served() as served:
        worker = config(served.url)
        stand_still = lambda: served._loop.call_soon_threadsafe(time.sleep, 6.0)  # noqa: E731
        after(monkeypatch, 3, served.stop if how == "is gone" else stand_still)
        with pytest.raises(ServerLost, match=LOST):
            replay_recipe(bag, SPEC, worker, folder, show=False)
    assert indices(folder) == [0, 1, 2]
    assert "Traceback" not in capfd.readouterr().err
    kept = (folder / FRAMES).read_text()
    with Served("workers.faults:another", port=served.port), pytest.raises(ReplayError, match="serves another policy"):
        replay_recipe(bag, SPEC, worker, folder, show=False)
    assert (folder / FRAMES).read_text() == kept
    with Served(port=served.port):
        run = replay_recipe(bag, SPEC, worker, folder, show=False)
    assert [record.problem for record in run.records] == [""] * 6
    assert (folder / FRAMES).read_text().startswith(kept)
    assert run.peak_memory_mb is None  # of the server's computer, which nobody asked
    (column,) = (measure for measure in MEASURES if measure.name == "peak_memory_mb")
    assert column.text(summarise(run, run, control_rate_hz=5.0)) == "–"


def test_a_server_that_is_gone_before_the_first_frame_is_the_same_sentence(bag, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(replay_run, "REACH_TIMEOUT_S", 0.5)
    with pytest.raises(ServerLost, match=LOST):
        replay_recipe(bag, SPEC, config("ws://127.0.0.1:9"), tmp_path / "r", show=False)
    assert "Traceback" not in capfd.readouterr().err


def test_what_the_policy_refuses_is_a_failed_prediction_as_ever(tmp_path, capfd):
    refused = write_bag(tmp_path / "bag", frames=2, instruction="nan")
    with Served() as served:
        run = replay_recipe(refused, SPEC, config(served.url), tmp_path / "r", show=False)
    assert len(run.records) == 2
    assert all("action 3 of the chunk is not finite" in record.problem for record in run.records)
    assert "Traceback" not in capfd.readouterr().err


def test_what_was_stored_as_failed_by_such_a_loss_is_predicted_again(bag, tmp_path):
    """Replays of before held one failed prediction a frame from the loss on, and counted as finished."""
    folder = tmp_path / "r"
    with Served() as served:
        replay_recipe(bag, SPEC, config(served.url), folder, show=False)
        lines = [json.loads(line) for line in (folder / FRAMES).read_text().splitlines()]
        lines[0]["policy_ms"] = 123456.0  # shows that it was not predicted again
        for line in lines[4:]:
            del line["deltas"], line["normalized"], line["selection"]
            line["problem"] = f"the prediction failed: RemoteError: {served.url}/native cannot be reached in time: gone"
        (folder / FRAMES).write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = replay_recipe(bag, SPEC, config(served.url), folder, show=False)
    assert [record.problem for record in run.records] == [""] * 6
    assert [record.policy_ms == 123456.0 for record in run.records] == [True] + [False] * 5


@pytest.mark.parametrize("processes", [1, 2])
def test_no_other_recording_is_begun_without_the_server(tmp_path, monkeypatch, processes):
    """Each frame takes a second, so that the server is lost while as many bags as may be are under way."""
    monkeypatch.setattr(replay_run, "REACH_TIMEOUT_S", 1.0)
    bags = [write_bag(tmp_path / name, frames=9, instruction="a second") for name in "abcdef"]
    with Served() as served:
        worker = config(served.url, timeout_s=10.0)
        jobs = [ReplayJob(bag, SPEC, ("fp32",), worker, tmp_path / f"out_{bag.name}", video=False) for bag in bags]
        begun = [tmp_path / f"out_{name}" / "fp32" / FRAMES for name in "abcdef"[:processes]]

        def stop():
            until_s = time.monotonic() + WAIT_S
            while not all(file.exists() and file.stat().st_size for file in begun) and time.monotonic() < until_s:
                time.sleep(0.1)
            served.stop()

        stopping = threading.Thread(target=stop)
        stopping.start()
        results = run_jobs(jobs, processes=processes)
        stopping.join()
    assert all(result.halts for result in results)
    assert [result.job for result in results] == jobs
    assert not (tmp_path / "out_f").exists()
    for file in begun:
        assert 0 < len(file.read_text().splitlines()) < 9
        assert 'problem": "the prediction failed' not in file.read_text()


def test_the_command_ends_with_one_sentence_and_status_1(bag, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(serving_worker, "WorkerConfig", functools.partial(WorkerConfig, prediction_timeout_s=2.0))
    other = write_bag(tmp_path / "other", frames=2)
    with Served() as served:
        after(monkeypatch, 4, served.stop)
        command = ["replay", str(bag), str(other), "--checkpoint", served.url, "--out", str(tmp_path / "out")]
        assert cli.main(command) == 1
    said = capfd.readouterr().err
    assert said.count("error: ") == 1
    assert f"error: {served.url}/native cannot be reached" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "other").exists()
