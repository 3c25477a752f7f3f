"""Closed-loop runs: execution of chunks, lockstep, resuming, tables. Real simulator; micro policy or scripted ones."""

import json
import os

import cv2
import numpy as np
import pytest

from sqap_vla_ros.commands.evaluate import register, units_of
from sqap_vla_ros.commands.options import CommandParser
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.contracts import ActionChunk, PolicyInfo
from sqap_vla_ros.evaluation.action_metrics import chunk_distance, rms_jerk
from sqap_vla_ros.evaluation.closed_loop.deviation import cumulative_curve, deviation, teach
from sqap_vla_ros.evaluation.closed_loop.episodes import EpisodeRun, Execution, lockstep_width, run_episodes
from sqap_vla_ros.evaluation.closed_loop.figures import sweep_figure
from sqap_vla_ros.evaluation.closed_loop.report import print_summary, write_report
from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
from sqap_vla_ros.evaluation.closed_loop.study import (
    DEVIATIONS,
    EPISODES,
    METHODS,
    ClosedLoopError,
    Method,
    Store,
    Unit,
    identity,
    remaining_work,
    split_among,
)
from sqap_vla_ros.evaluation.closed_loop.tables import markdown, method_results, write_csv
from sqap_vla_ros.simulation.environment import CONTROL_DT_S, TabletopEnv
from sqap_vla_ros.simulation.experts import plan_actions
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.vocabulary import TaskFamily

SUITE = "visual_matching"
PICK, OPEN = TaskFamily.PICK, TaskFamily.OPEN_DRAWER


@pytest.fixture(scope="module")
def envs():
    made = [TabletopEnv(shadows=False, antialiasing=False) for _ in range(2)]
    made[0].reset(0)
    try:
        made[0].render()
    except RenderingUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    yield made
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def micro():
    return load_policy("micro")


class Scripted:
    """A policy whose chunk number n moves x by (n + 1) mm in its first action, by a tenth more in each that follows."""

    info = PolicyInfo("scripted", "", "scripted", 0, 16, CONTROL_DT_S, 224, (16, 16), "none", "none")

    def __init__(self, unit_m=1e-3):
        self.asked, self.unit_m = [], unit_m

    def reset(self):
        self.asked.clear()

    def predict(self, observation, *, seed=0):
        deltas = np.zeros((16, 7))
        deltas[:, 0] = self.unit_m * (len(self.asked) + 1 + 0.1 * np.arange(16))
        self.asked.append((observation.stamp_ns, seed))
        return ActionChunk(observation.stamp_ns, deltas, CONTROL_DT_S, deltas)


class Expert(Scripted):
    """Cheats: reads the world's state."""

    def __init__(self, env):
        super().__init__()
        self.env = env

    def predict(self, observation, *, seed=0):
        deltas = plan_actions(self.env.task, self.env.state)
        return ActionChunk(observation.stamp_ns, deltas, CONTROL_DT_S, deltas)


def executed(monkeypatch, env, execution, chunks, unit_m=1e-3):
    """The x of every action that `chunks` chunks of the scripted policy lead to, in units, and what it was asked."""
    actions = []
    step = env.step
    monkeypatch.setattr(env, "step", lambda action: actions.append(np.array(action)) or step(action))
    policy, episode = Scripted(unit_m), EpisodeRun(env, SUITE, PICK, 0, execution)
    for _ in range(chunks):
        observation = episode.observe()
        episode.act(policy.predict(observation, seed=episode.noise_seed))
    return np.array(actions)[:, 0] / unit_m, policy.asked


def test_the_world_waits_for_the_policy(envs, monkeypatch):
    x, asked = executed(monkeypatch, envs[0], Execution(horizon=3), 2)
    np.testing.assert_allclose(x, [1.0, 1.1, 1.2, 2.0, 2.1, 2.2], atol=1e-9)
    assert [stamp for stamp, _ in asked] == [0, 600_000_000]
    assert [seed for _, seed in asked] == [0, 1]


def test_the_world_goes_on_while_the_policy_thinks(envs, monkeypatch):
    """Two steps late: the arm stands still, does chunk 1 from its first action on, then chunk 2 from its third."""
    x, _ = executed(monkeypatch, envs[0], Execution(horizon=4, latency_s=0.3), 3)
    chunk = [np.cumsum(n + 0.1 * np.arange(16)) for n in (1, 2, 3)]  # where each leads, from where its image was taken
    where = np.cumsum(x)
    anchors = [0.0, where[3], where[7]]
    expected = [0.0, 0.0, *chunk[0][:4], *(anchors[1] + chunk[1][2:6]), *(anchors[2] + chunk[2][2:4])]
    np.testing.assert_allclose(where, expected, atol=1e-6)


def test_a_chunk_that_arrives_with_the_next_image_takes_effect_then(envs, monkeypatch):
    x, _ = executed(monkeypatch, envs[0], Execution(horizon=2, latency_s=0.4), 3)
    np.testing.assert_allclose(np.cumsum(x)[:2], 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cumsum(x)[2:4], np.cumsum(1 + 0.1 * np.arange(16))[:2], atol=1e-6)


def test_a_late_chunk_is_entered_where_the_arm_is(envs, monkeypatch):
    """Chunk 2 is twice as fast as chunk 1: two actions of chunk 1 led to where chunk 2 is after one."""
    x, _ = executed(monkeypatch, envs[0], Execution(horizon=4, latency_s=0.3, join="path"), 2, unit_m=0.01)
    chunk = [np.cumsum(n + 0.1 * np.arange(16)) for n in (1, 2)]
    where = np.cumsum(x)
    np.testing.assert_allclose(where[2:6], chunk[0][:4], atol=1e-6)  # the arm stood still until then
    # entered at action 1; at action 2, as many as were executed since its image, the arm would leap
    np.testing.assert_allclose(where[6:], where[3] + chunk[1][1:3], atol=1e-6)


@pytest.mark.parametrize("continuation", ["replace", "guided"])
def test_a_continued_chunk_repeats_what_the_arm_did_meanwhile(envs, micro, monkeypatch, continuation):
    """Its first two actions are those executed while it was computed; the others follow from where these led."""
    actions, step = [], envs[0].step
    monkeypatch.setattr(envs[0], "step", lambda action: actions.append(np.array(action)) or step(action))
    episode = EpisodeRun(envs[0], SUITE, PICK, 0, Execution(4, latency_s=0.4, continuation=continuation))
    chunks = []
    for _ in range(3):
        observation = episode.observe()
        assert (observation.commitment is None) == (not chunks)  # the arm stands still until the first chunk
        chunks.append(micro.predict(observation, seed=1))
        episode.act(chunks[-1])
    for index in (1, 2):
        np.testing.assert_allclose(chunks[index].deltas[:4], actions[4 * index : 4 * index + 4], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("join", ["clock", "path"])
@pytest.mark.parametrize("latency_s", [0.4, 0.8, 1.6])
def test_delay_alone_costs_the_expert_nothing(envs, latency_s, join):
    """Perfect chunks, however late, do every task: what success a delay costs is not the executor's doing."""
    execution = Execution(8, latency_s=latency_s, join=join)
    results = [
        run_episodes(Expert(envs[0]), envs, SUITE, family, [seed], execution)[0]
        for family in TaskFamily
        for seed in range(1000, 1002)
    ]
    assert [(r.family, r.seed, r.reason) for r in results if not r.success] == []


def test_the_original_ensemble_averages_calls(envs, monkeypatch):
    x, _ = executed(monkeypatch, envs[0], Execution(horizon=1, ensemble="original"), 2)
    assert x[0] == pytest.approx(1.0)
    assert x[1] == pytest.approx((2.0 + 1.1) / 2)  # both point the same way, so they weigh the same


def test_the_ensemble_by_time_averages_moments(envs, monkeypatch):
    x, _ = executed(monkeypatch, envs[0], Execution(horizon=4, ensemble="by_time"), 2)
    np.testing.assert_allclose(x[4:], [(2.0 + 1.4) / 2, (2.1 + 1.5) / 2, (2.2 + 1.6) / 2, (2.3 + 1.7) / 2], atol=1e-6)


@pytest.mark.parametrize("execution", [Execution(), Execution(latency_s=0.2), Execution(16)])
def test_the_expert_succeeds_through_chunks(envs, execution):
    """A plan with an open drawer ahead of it is long enough to be late or blind for a while."""
    (result,) = run_episodes(Expert(envs[0]), envs, SUITE, OPEN, [1000], execution)
    assert result.success
    assert result.reason == "success"
    assert 5 <= result.steps <= 35
    assert result.chunks == -(-result.steps // execution.horizon)
    assert 0.1 < result.path_m < 2.0


def test_invalid_actions_end_the_episode(envs):
    episode = EpisodeRun(envs[0], SUITE, PICK, 0, Execution())
    bad = np.full((16, 7), np.nan)
    episode.act(ActionChunk(episode.observe().stamp_ns, bad, CONTROL_DT_S, bad))
    assert episode.finished
    result = episode.result()
    assert (result.reason, result.success, result.steps, result.jerk_m_s3) == ("invalid action", False, 0, None)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"horizon": 0}, "got 0"),
        ({"horizon": 17}, "got 17"),
        ({"ensemble": "mean"}, "'mean'"),
        ({"ensemble": "original"}, "horizon must be 1"),
        ({"horizon": 2, "latency_s": 0.5}, "0.5 s"),
        ({"join": "later"}, "join must be one of path, clock, got 'later'"),
        ({"latency_s": 0.4, "continuation": "magic"}, "one of none, replace, guided, best_of_8, got 'magic'"),
        ({"continuation": "guided"}, "'guided' needs a latency and no ensemble, got a latency of 0.0 s"),
    ],
)
def test_executions_that_make_no_sense_are_refused(given, match):
    with pytest.raises(ValueError, match=match):
        Execution(**given)


def test_a_policy_that_cannot_continue_chunks_is_refused(envs):
    with pytest.raises(ValueError, match=r"'replace' needs a policy in this process .* got 'scripted'"):
        run_episodes(Scripted(), envs, SUITE, PICK, [0], Execution(4, latency_s=0.4, continuation="replace"))


def test_episodes_side_by_side_are_what_they_are_alone(envs, micro):
    """Prompts of both lengths: the 'yellow' of a name is one token more."""
    together = run_episodes(micro, envs, SUITE, PICK, [0, 1], Execution(8))
    alone = [run_episodes(micro, envs, SUITE, PICK, [seed], Execution(8))[0] for seed in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert (one.seed, one.success, one.steps, one.chunks) == (other.seed, other.success, other.steps, other.chunks)
        assert one.path_m == pytest.approx(other.path_m, rel=0.02)
    assert together[0].path_m != pytest.approx(together[1].path_m, rel=0.02)


@pytest.mark.parametrize(
    ("recipe", "width"),
    [("fp32", 8), ("sqap_pruning", 8), ("random_drop", 1), ("random_same_budget", 1), ("vla_cache", 1)],
)
def test_what_would_mix_episodes_is_run_alone(recipe, width):
    assert lockstep_width(load_policy("micro", recipe), 8) == width


def test_jerk_is_the_third_derivative():
    times = CONTROL_DT_S * np.arange(12)
    cubic = np.stack([times**3, np.zeros(12), 2 * times**2], axis=1)
    assert rms_jerk(cubic, CONTROL_DT_S) == pytest.approx(6.0, rel=1e-3)
    assert rms_jerk(cubic[:3], CONTROL_DT_S) is None


def test_chunks_are_compared_as_they_are_executed():
    ours, reference = np.zeros((16, 7)), np.full((16, 7), 0.5)
    assert chunk_distance(ours, reference) == pytest.approx(0.5 * np.sqrt(16 * 7))
    assert chunk_distance(ours + 7.0, reference + 3.0) == 0.0  # both saturate


def test_the_deviation_of_the_reference_is_zero_and_of_a_compressed_one_is_not(envs, micro):
    taught = teach(micro, envs[0], SUITE, PICK, 0)
    assert len(taught.observations) == 5
    itself = deviation(micro, taught)
    assert max(itself.distances) < 1e-4
    compressed = deviation(load_policy("micro", "rtn_w4a4"), taught)
    assert min(compressed.distances) > 1e-3
    np.testing.assert_allclose(cumulative_curve([(1, 1, 1), (2,)]), [1.5, 2.0, 2.5])


def unit(name="fp32", episodes=4, deviations=0, **more):
    return Unit(Method(name, name, "micro"), SUITE, episodes, (PICK, OPEN), deviations, **more)


def row(family, seed, success, **more):
    common = {"suite": SUITE, "family": family, "seed": seed, "success": success, "steps": 20, "chunks": 5}
    return common | {"reason": "", "path_m": 1.0, "jerk_m_s3": 2.0, "inference_ms": 9.0} | more


def test_families_take_turns_and_what_is_stored_is_not_done_again(tmp_path):
    store = Store(tmp_path)
    (assignment,) = remaining_work([unit(deviations=2)], store, lockstep=2)
    order = [(str(g.family), g.seeds, g.taught) for g in assignment.groups]
    assert order == [
        ("pick", (0, 1), True),
        ("open_drawer", (0, 1), True),
        ("pick", (0, 1), False),
        ("open_drawer", (0, 1), False),
        ("pick", (2, 3), False),
        ("open_drawer", (2, 3), False),
    ]
    store.append("fp32", EPISODES, [row("pick", 0, True), row("pick", 1, False), row("open_drawer", 1, True)])
    store.append("fp32", DEVIATIONS, [{"suite": SUITE, "family": "pick", "seed": 0, "distances": [1.0]}])
    (assignment,) = remaining_work([unit(deviations=2)], store, lockstep=2)
    assert [(str(g.family), g.seeds, g.taught) for g in assignment.groups] == [
        ("pick", (1,), True),
        ("open_drawer", (0, 1), True),
        ("open_drawer", (0,), False),
        ("pick", (2, 3), False),
        ("open_drawer", (2, 3), False),
    ]


def test_more_episodes_add_to_those_planned_before(tmp_path):
    assignments = remaining_work(
        [unit(episodes=2), unit("sqap", episodes=2), unit(episodes=4)], Store(tmp_path), lockstep=2
    )
    assert [(s.method.name, sum(len(g.seeds) for g in s.groups)) for s in assignments] == [
        ("fp32", 4),
        ("sqap", 4),
        ("fp32", 4),
    ]


def test_few_methods_are_cut_for_many_processes(tmp_path):
    assignments = remaining_work([unit(episodes=4)], Store(tmp_path), lockstep=1)
    cut = split_among(assignments, 3)
    assert [len(s.groups) for s in cut] == [3, 3, 2]
    assert {(g.family, g.seeds) for s in cut for g in s.groups} == {(g.family, g.seeds) for g in assignments[0].groups}
    assert split_among([], 4) == []


def test_a_line_cut_off_while_being_written_is_done_again(tmp_path):
    store = Store(tmp_path)
    store.append("fp32", EPISODES, [row("pick", 0, True)])
    path = tmp_path / EPISODES / "fp32.jsonl"
    with path.open("a") as file:
        file.write('{"method": "fp32", "suite": "visual_ma')
    assert [r["seed"] for r in store.episodes("fp32")] == [0]
    store.append("fp32", EPISODES, [row("pick", 1, True)])
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [0, 1]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    store = Store(tmp_path)
    held = store.lock()
    with pytest.raises(ClosedLoopError, match="another run is writing"):
        run_units([unit()], tmp_path, reference=unit().method, show=False)
    os.close(held)
    os.close(store.lock())


def test_results_of_something_else_are_not_continued(tmp_path):
    store = Store(tmp_path)
    method = Method("ours", "fp32", "micro")
    store.describe("ours", identity(method))
    store.describe("ours", {"parameters": 5})
    store.describe("ours", identity(method))
    assert store.methods()["ours"]["parameters"] == 5
    with pytest.raises(ClosedLoopError, match="'ours' with another recipe digest"):
        store.describe("ours", identity(Method("ours", "w4a4", "micro")))
    with pytest.raises(ClosedLoopError, match=r"another execution \(horizon 8, now 4\)"):
        store.describe("ours", identity(Method("ours", "fp32", "micro", Execution(4))))
    with pytest.raises(ClosedLoopError, match="no slash"):
        Method("a/b", "fp32")
    for damage in ("{", "[]", '{"ours": 5}', '{"ours": {"bops": "x"}}', '{"ours": {"costs": {"a": "x"}}}', "[" * 9000):
        (tmp_path / METHODS).write_text(damage)
        with pytest.raises(ClosedLoopError, match=r"methods\.json is damaged: delete it"):
            store.methods()


def test_rows_compare_the_same_episodes(tmp_path):
    store = Store(tmp_path)
    store.append("fp32", EPISODES, [row("pick", seed, seed < 6) for seed in range(8)] + [row("open_drawer", 0, True)])
    store.append("sqap", EPISODES, [row("pick", seed, seed in (0, 1, 7), steps=10) for seed in range(8)])
    store.append("sqap", EPISODES, [row("pick", 0, True, suite="variant_aggregation")])
    store.append("sqap", DEVIATIONS, [{"suite": SUITE, "family": "pick", "seed": 0, "distances": [1.0, 2.5]}])
    fp32, sqap = method_results(store, ["fp32", "sqap", "absent"], SUITE)
    assert fp32.success.value == pytest.approx(7 / 9)
    assert fp32.against is None
    assert (sqap.episodes, sqap.pairs) == (8, 8)
    assert sqap.success.value == pytest.approx(3 / 8)
    assert sqap.against.value == pytest.approx(3 / 8 - 6 / 8)
    assert sqap.p_value == pytest.approx(2 * (1 + 5) / 2**5)  # one way once, the other four times
    assert sqap.families["open_drawer"] is None
    assert sqap.families["pick"].value == pytest.approx(3 / 8)
    assert sqap.deviation == pytest.approx(3.5)
    text = markdown([fp32, sqap], {"sqap": "SQAP-VLA"})
    assert "| SQAP-VLA | 8 | 38 |" in text
    assert "-37.5" in text
    write_csv(tmp_path / "rows.csv", [fp32, sqap])
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("sqap,visual_matching,8,37.5,")


def test_the_report_has_tables_and_pictures(tmp_path, capsys):
    store = Store(tmp_path)
    for name, successes in (("fp32", 5), ("sqap", 4)):
        store.append(name, EPISODES, [row("pick", seed, seed < successes) for seed in range(8)])
        store.append(name, DEVIATIONS, [{"suite": SUITE, "family": "pick", "seed": 0, "distances": [0.1, 0.2]}])
    path = write_report(store, ["fp32", "sqap"], SUITE)
    text = path.read_text()
    assert "| sqap | 8 | 50 |" in text
    for picture in (f"{SUITE}_success.png", f"{SUITE}_deviation.png"):
        assert f"]({picture})" in text
        assert cv2.imread(str(tmp_path / picture)).std() > 1.0
    assert (tmp_path / f"{SUITE}.csv").read_text().count("\n") == 3
    print_summary(store, ["fp32", "sqap"], SUITE)
    assert "-12.5" in capsys.readouterr().out


def test_the_sweep_is_drawn(tmp_path):
    store = Store(tmp_path)
    store.append("fp32", EPISODES, [row("pick", seed, seed < 5) for seed in range(8)])
    (measured,) = method_results(store, ["fp32"], SUITE)
    sweep_figure(
        tmp_path / "a.png", {"sqap": [(0.4, measured), (0.8, measured)], "none": []}, "t", "x", {"f": measured}
    )
    assert cv2.imread(str(tmp_path / "a.png")).std() > 1.0


def arguments(*given):
    parser = CommandParser()
    register(parser.add_subparsers())
    return parser.parse_args(["evaluate", *given])


def test_the_command_line_becomes_units():
    units = units_of(
        arguments(
            "--recipes", "fp32,sqap", "--suite", "both", "--families", "pick", "--horizon", "8", "--episodes", "7"
        )
    )
    assert [(u.method.name, u.suite) for u in units] == [
        ("fp32", "visual_matching"),
        ("fp32", "variant_aggregation"),
        ("sqap", "visual_matching"),
        ("sqap", "variant_aggregation"),
    ]
    assert units[0].families == (PICK,)
    assert units[0].method.execution == Execution(8)
    assert (units[0].episodes, units[0].deviations, units[0].method.checkpoint) == (7, 3, "tabletop")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--recipes", "fp32,fp32"], "each once"),
        (["--recipes", "w4a3"], "w4a3"),
        (["--families", "pick,fly"], "--families: knows no fly; there are: pick, "),
        (["--episodes", "0"], "--episodes: must be at least 1, got 0"),
        (["--horizon", "4", "--async-latency", "2"], "2.0 s"),
    ],
)
def test_a_wrong_option_is_told_before_the_work(given, match):
    with pytest.raises(ValueError, match=match):
        units_of(arguments(*given))
