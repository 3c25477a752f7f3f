import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.robot.ensemble import AdaptiveEnsemble

DT_S = 0.2
STEP_NS = round(DT_S * NS_PER_S)


def chunk(seed: int, steps: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    motion = rng.uniform(-0.1, 0.1, (steps, 6))
    return np.concatenate([motion, rng.integers(0, 2, (steps, 1)).astype(float)], axis=1)


def test_one_chunk_is_itself():
    deltas = chunk(0)
    np.testing.assert_allclose(AdaptiveEnsemble().update(deltas, 0, DT_S), deltas, atol=1e-12)


def test_chunks_that_agree_change_nothing_even_when_they_start_between_steps():
    constant = np.tile([0.01, -0.02, 0.005, 0.0, 0.0, 0.05, 1.0], (16, 1))
    ensemble = AdaptiveEnsemble(horizon=4)
    for stamp_ns in (0, 90_000_000, 333_333_333, 500_000_001):
        averaged = ensemble.update(constant, stamp_ns, DT_S)
        np.testing.assert_allclose(averaged, constant, atol=1e-9)


def test_aligned_steps_are_weighted_by_their_cosine_with_the_newest():
    old, new, alpha = chunk(1), chunk(2), 3.0
    ensemble = AdaptiveEnsemble(horizon=2, alpha=alpha)
    ensemble.update(old, 0, DT_S)
    averaged = ensemble.update(new, 2 * STEP_NS, DT_S)
    for step in range(14):
        a, b = old[step + 2, :6], new[step, :6]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        weights = np.array([np.exp(alpha * cosine), np.exp(alpha)])
        weights /= weights.sum()
        np.testing.assert_allclose(averaged[step, :3], weights @ np.stack([a[:3], b[:3]]), atol=1e-9)
        mean = Rotation.from_euler("xyz", np.stack([a[3:], b[3:]])).mean(weights).as_euler("xyz")
        np.testing.assert_allclose(averaged[step, 3:6], mean, atol=1e-9)
    np.testing.assert_allclose(averaged[14:], new[14:], atol=1e-12)  # the old chunk has nothing to say about these


def test_a_chunk_that_is_executed_later_speaks_of_later_moments():
    whole = chunk(3, 20)
    ensemble = AdaptiveEnsemble(horizon=2, alpha=1.0)
    ensemble.update(whole[:16], 0, DT_S)
    ensemble.moved(4 * STEP_NS)  # the arm stood still so long
    for _ in range(2):  # the same when it is moved in two parts
        np.testing.assert_allclose(ensemble.update(whole[2:18], 6 * STEP_NS, DT_S), whole[2:18], atol=1e-9)
        ensemble.reset()
        ensemble.update(whole[:16], 0, DT_S)
        ensemble.moved(3 * STEP_NS)
        ensemble.moved(STEP_NS)
    ensemble.reset()
    ensemble.moved(STEP_NS)  # of nothing
    np.testing.assert_allclose(ensemble.update(whole[:16], 0, DT_S), whole[:16], atol=1e-12)


def test_the_gripper_is_the_newest_chunks_and_not_averaged():
    ensemble = AdaptiveEnsemble()
    closed, opened = chunk(1), chunk(2)
    closed[:, 6], opened[:, 6] = 0.0, 1.0
    ensemble.update(closed, 0, DT_S)
    np.testing.assert_array_equal(ensemble.update(opened, STEP_NS, DT_S)[:, 6], 1.0)


def test_the_gripper_takes_no_part_in_the_cosine():
    results = []
    for opening in (0.0, 1.0):
        ensemble = AdaptiveEnsemble(alpha=5.0)
        old = chunk(1)
        old[:, 6] = opening
        ensemble.update(old, 0, DT_S)
        results.append(ensemble.update(chunk(2), STEP_NS, DT_S))
    np.testing.assert_array_equal(results[0], results[1])


def test_an_older_chunk_is_read_at_the_time_and_not_at_the_call():
    """Three steps pass between two calls: the old chunk's fourth action is the one for the new chunk's first."""
    old = np.zeros((16, 7))
    old[3, 0] = 0.08
    new = np.zeros((16, 7))
    by_time = AdaptiveEnsemble(alpha=0.0)
    by_time.update(old, 0, DT_S)
    assert by_time.update(new, 3 * STEP_NS, DT_S)[0, 0] == pytest.approx(0.04)
    by_call = AdaptiveEnsemble(alpha=0.0, align="call")
    by_call.update(old, 0, DT_S)
    np.testing.assert_allclose(by_call.update(new, 3 * STEP_NS, DT_S)[:, 0], np.eye(16)[2] * 0.04)


def test_only_chunks_that_cover_the_whole_step_take_part():
    ensemble = AdaptiveEnsemble(alpha=0.0)
    old, new = chunk(1, steps=4), np.zeros((4, 7))
    ensemble.update(old, 0, DT_S)
    averaged = ensemble.update(new, round(2.5 * STEP_NS), DT_S)
    # Steps of the new chunk end 3.5 dt, 4.5 dt ... after the old stamp; the old chunk ends at 4 dt.
    np.testing.assert_allclose(averaged[0, :3], 0.5 * 0.5 * (old[2, :3] + old[3, :3]), atol=1e-12)
    np.testing.assert_array_equal(averaged[1:], new[1:])


def test_by_call_is_the_public_evaluations_formula():
    """First action against a direct transcription of the formula: candidate j is read j steps further on."""
    alpha, chunks = 0.7, [chunk(seed) for seed in range(5)]
    ensemble = AdaptiveEnsemble(horizon=3, alpha=alpha, align="call")
    for call, deltas in enumerate(chunks):
        averaged = ensemble.update(deltas, call * STEP_NS, DT_S)
    candidates = np.stack([chunks[4][0], chunks[3][1], chunks[2][2]])
    reference = candidates[0]
    cosine = candidates @ reference / np.linalg.norm(candidates, axis=1) / np.linalg.norm(reference)
    weights = np.exp(alpha * cosine)
    np.testing.assert_allclose(averaged[0], weights @ candidates / weights.sum(), atol=1e-12)


def test_at_most_horizon_chunks_are_kept():
    ensemble = AdaptiveEnsemble(horizon=2, alpha=0.0)
    for call, value in enumerate((0.9, 0.03, 0.01)):
        averaged = ensemble.update(np.full((16, 7), value) * [1, 0, 0, 0, 0, 0, 0], call * STEP_NS, DT_S)
    assert averaged[0, 0] == pytest.approx(0.02)


def test_a_chunk_of_rest_is_averaged_without_dividing_by_zero():
    ensemble = AdaptiveEnsemble()
    ensemble.update(np.zeros((16, 7)), 0, DT_S)
    assert np.isfinite(ensemble.update(np.zeros((16, 7)), STEP_NS, DT_S)).all()


def test_time_that_goes_back_is_refused_until_reset():
    ensemble = AdaptiveEnsemble()
    ensemble.update(chunk(0), STEP_NS, DT_S)
    with pytest.raises(ValueError, match="reset"):
        ensemble.update(chunk(1), 0, DT_S)
    ensemble.reset()
    np.testing.assert_allclose(ensemble.update(chunk(1), 0, DT_S), chunk(1), atol=1e-12)


@pytest.mark.parametrize("arguments", [{"horizon": 0}, {"alpha": -1.0}, {"alpha": np.nan}, {"align": "index"}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        AdaptiveEnsemble(**arguments)


def test_a_chunk_that_is_not_finite_is_refused_and_not_remembered():
    ensemble = AdaptiveEnsemble()
    bad = chunk(0)
    bad[2, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        ensemble.update(bad, 0, DT_S)
    np.testing.assert_allclose(ensemble.update(chunk(1), 1, DT_S), chunk(1), atol=1e-12)
