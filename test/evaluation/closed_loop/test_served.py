"""The embedded benchmark over a server: the same episodes as with the policy here."""

import signal
from dataclasses import replace

import pytest
from endings.interruptions import interrupted_within_a_lock
from policy_doubles import Double
from workers import wait_until
from workers.served import Served

from sqap_vla_ros.cli import build_parser, main
from sqap_vla_ros.commands.recordings.replay import jobs_of
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.contracts import UnfitObservation
from sqap_vla_ros.evaluation.closed_loop import cluster, episode_worker
from sqap_vla_ros.evaluation.closed_loop.episode_worker import EpisodeWorker, load
from sqap_vla_ros.evaluation.closed_loop.episodes import Execution, lockstep_width, run_episodes
from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
from sqap_vla_ros.evaluation.closed_loop.study import (
    Assignment,
    ClosedLoopError,
    Group,
    Method,
    Store,
    identity,
    study_units,
)
from sqap_vla_ros.evaluation.replay.jobs import compression_of
from sqap_vla_ros.serving.frames import RemoteError
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.vocabulary import TaskFamily

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")
SUITE = "visual_matching"
LOST = "ws://127.0.0.1:1/native cannot be reached in time: Connection refused"
GOES_ON = "; when the server answers again, the same command goes on from here"
TOO_LARGE = "the observation cannot be sent: send a smaller image"


@pytest.fixture(scope="module")
def served():
    with Served("policy_doubles:micro_pruned") as served:
        assert wait_until(lambda: served.engine.problem is None)
        yield served


@pytest.fixture
def env():
    with TabletopEnv(shadows=False, antialiasing=False) as env:
        env.reset(0)
        try:
            env.render()
        except RenderingUnavailableError as error:
            pytest.skip(f"no OpenGL here: {error}")
        yield env


def units(address, **more):
    return study_units(
        ["fp32"], [SUITE], [TaskFamily.PICK], checkpoint=address, execution=Execution(), episodes=1, **more
    )


def test_served_episodes_are_those_of_the_policy_here(served, env):
    (unit,) = units(served.url)
    assert unit.method.name == "served_sqap_pruning"
    policy, description = load(unit.method)
    local = load_policy("micro", "sqap_pruning")
    assert (description["parameters"], description["selector"]) == (local.info.parameters, "sqap")
    assert lockstep_width(policy, 8) == 1
    ours, theirs = (run_episodes(p, [env], SUITE, TaskFamily.PICK, [0], Execution())[0] for p in (local, policy))
    first, second = ours.to_dict(), theirs.to_dict()
    del first["inference_ms"], second["inference_ms"]
    assert first == second
    policy.close()


def test_a_served_method_is_known_by_the_policy_and_not_by_the_address(served):
    (unit,) = units(served.url)
    assert identity(unit.method)["checkpoint"].startswith("micro ")
    assert served.url not in str(identity(unit.method))


def test_a_replay_has_the_servers_recipe_and_no_other(served, tmp_path, capsys):
    (tmp_path / "bag").mkdir()
    command = ["replay", str(tmp_path / "bag"), "--out", str(tmp_path / "out"), "--checkpoint", served.url]
    (job,) = jobs_of(build_parser().parse_args(command))
    assert job.recipes == ("sqap_pruning",)
    assert (
        "served as sqap_pruning by ws://" in compression_of(replace(job.worker, recipe="sqap_pruning"))["description"]
    )
    assert capsys.readouterr().err == ""
    jobs_of(build_parser().parse_args([*command, "--recipes", "fp32,sqap"]))
    assert "note: --recipes is ignored: the server has chosen sqap_pruning" in capsys.readouterr().err


def test_a_policy_with_a_memory_is_not_shared_by_processes(tmp_path):
    with Served("policy_doubles:with_memory") as served:
        shared = units(served.url)
        with pytest.raises(ClosedLoopError, match=r"remembers earlier images[\s\S]*--jobs 1"):
            run_units(shared, tmp_path, reference=shared[0].method, jobs=2, show=False)


@pytest.mark.parametrize("at", ["study.served_info", "run_study.run_units"])
def test_a_server_that_is_not_there_or_leaves_is_a_sentence(at, monkeypatch, tmp_path, capsys):
    def refuse(*_, **__):
        raise RemoteError(LOST)

    monkeypatch.setattr("sqap_vla_ros.evaluation.closed_loop.study.served_info", lambda address: Double().info)
    monkeypatch.setattr(f"sqap_vla_ros.evaluation.closed_loop.{at}", refuse)
    assert main(["evaluate", "--checkpoint", "ws://127.0.0.1:1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"sqap-vla: error: --checkpoint ws://127.0.0.1:1: {LOST}{GOES_ON}\n")


@pytest.mark.parametrize("when", ["load", "EpisodeWorker._run_group"])
@pytest.mark.parametrize(
    ("error", "said"), [(RemoteError(LOST), LOST + GOES_ON), (UnfitObservation(TOO_LARGE), TOO_LARGE)]
)
def test_a_server_that_dies_during_the_episodes_is_a_sentence_without_a_trace(when, error, said, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(episode_worker, "load", lambda method: (Double(), {}))
    monkeypatch.setattr(f"sqap_vla_ros.evaluation.closed_loop.episode_worker.{when}", fail)
    method = Method("served_fp32", "fp32", "ws://127.0.0.1:1")
    messages = list(EpisodeWorker(method).run(Assignment(method, (Group(SUITE, TaskFamily.PICK, (0,)),))))
    assert messages[-1] == ("problem", "served_fp32", said)


@pytest.mark.parametrize("when", ["load", "EpisodeWorker._run_group"])
def test_an_interruption_is_no_problem_of_a_method(when, monkeypatch):
    monkeypatch.setattr(episode_worker, "load", lambda method: (Double(), {}))
    monkeypatch.setattr(
        f"sqap_vla_ros.evaluation.closed_loop.episode_worker.{when}", lambda *_: interrupted_within_a_lock()
    )
    method = Method("fp32", "fp32", "micro")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            list(EpisodeWorker(method).run(Assignment(method, (Group(SUITE, TaskFamily.PICK, (0,)),))))
    finally:
        signal.signal(signal.SIGINT, before)


def test_episodes_of_a_server_s_other_policy_are_not_mixed_in(tmp_path, monkeypatch):
    method = Method("served_fp32", "fp32", "ws://127.0.0.1:1")
    info = replace(Double().info, settings="ddim 10 steps, guidance 1.5", costs={"weight_mb": 1.0})
    monkeypatch.setattr("sqap_vla_ros.evaluation.closed_loop.study.served_info", lambda address: info)
    store = Store(tmp_path)
    store.describe(method.name, identity(method))
    store.describe(method.name, identity(method))
    info = replace(info, settings="ddim 2 steps, guidance 1.5")
    with pytest.raises(ClosedLoopError, match=r"served policy \(settings ddim 10 steps, .*, now ddim 2 steps, "):
        store.describe(method.name, identity(method))


def test_a_process_of_a_cluster_waits_for_a_lost_server_once(monkeypatch):
    """Each group is a task of its own: dozens of them would wait half a minute each."""
    tried: list[Method] = []

    def refuse(method):
        tried.append(method)
        raise RemoteError(LOST)

    monkeypatch.setattr(episode_worker, "load", refuse)
    monkeypatch.setattr(cluster, "_worker", None)
    monkeypatch.setattr(cluster, "_problems", {})
    lost, other = (Method(name, "fp32", f"ws://127.0.0.1:{port}") for name, port in (("lost", 1), ("other", 2)))
    for method in (lost, lost, lost, other):
        (message,) = cluster.run_group(Assignment(method, (Group(SUITE, TaskFamily.PICK, (0,)),)), lost)
        assert message == ("problem", method.name, LOST + GOES_ON)
    assert tried == [lost, other]
