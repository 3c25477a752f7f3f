import numpy as np
import pytest

from sqap_vla_ros.simulation.joint_path import JointPath, TrajectoryRejectedError, accept_trajectory

S = 1_000_000_000
JOINTS = ("a", "b")


def accept(**changes):
    arguments = {
        "names": JOINTS,
        "times_ns": [2 * S, 3 * S],
        "positions": [[0.1, 0.2], [0.3, 0.4]],
        "velocities": [[0.0, 0.0], [0.0, 0.0]],
        "now_ns": 1 * S,
        "position": np.array([0.0, 0.0]),
        "velocity": np.array([0.5, 0.0]),
    }
    return accept_trajectory(JOINTS, **{**arguments, **changes})


def test_cubic_through_positions_and_velocities():
    """Against the closed form: a segment of a cubic is that cubic."""
    coefficients = np.array([[0.3, -0.2], [0.1, 0.4], [-0.7, 0.2], [0.5, -0.1]])  # [4, 2]

    def value(t):
        return sum(c * t**i for i, c in enumerate(coefficients))

    def slope(t):
        return sum(i * c * t ** (i - 1) for i, c in enumerate(coefficients) if i)

    times = np.array([0, 0.7, 1.5])
    path = JointPath(
        (times * S).astype(np.int64), np.array([value(t) for t in times]), np.array([slope(t) for t in times])
    )
    for t in np.linspace(0.01, 1.49, 23):
        position, velocity = path.sample(round(t * S))
        np.testing.assert_allclose(position, value(t), atol=1e-8)
        np.testing.assert_allclose(velocity, slope(t), atol=1e-7)


def test_quintic_where_both_points_have_accelerations():
    """Against the closed form, and the cubic next to a point without."""
    coefficients = np.array([[0.3], [0.1], [-0.7], [0.5], [0.4], [-0.2]])

    def derivative(t, order):
        polynomial = np.polynomial.Polynomial(coefficients[:, 0])
        return np.array([polynomial.deriv(order)(t) if order else polynomial(t)])

    times = np.array([0.0, 0.5, 1.2])
    rows = [np.array([derivative(t, order) for t in times]) for order in range(3)]
    path = JointPath((times * S).astype(np.int64), *rows)
    rows[2] = np.vstack([[[np.nan]], rows[2][1:]])
    partly = JointPath((times * S).astype(np.int64), *rows)
    for t in np.linspace(0.51, 1.19, 9):
        for either in (path, partly):
            position, velocity = either.sample(round(t * S))
            np.testing.assert_allclose(position, derivative(t, 0), atol=1e-8)
            np.testing.assert_allclose(velocity, derivative(t, 1), atol=1e-7)
    cubic = JointPath(partly.times_ns, partly.positions, partly.velocities)
    np.testing.assert_allclose(partly.sample(S // 4)[0], cubic.sample(S // 4)[0])
    assert abs(path.sample(S // 4)[0][0] - cubic.sample(S // 4)[0][0]) > 1e-4


def test_without_velocities_straight_and_at_the_end_still():
    path = JointPath(np.array([0, S]), np.array([[0.0], [1.0]]), None)
    assert path.sample(S // 4)[0] == pytest.approx(0.25)
    assert path.sample(S // 4)[1] == pytest.approx(1.0)
    for late in (S, 2 * S):
        position, velocity = path.sample(late)
        assert (position[0], velocity[0]) == (1.0, 0.0)


def test_starts_from_the_present_state():
    path = accept()
    position, velocity = path.sample(1 * S + 1)
    np.testing.assert_allclose(position, (0.0, 0.0), atol=1e-6)
    np.testing.assert_allclose(velocity, (0.5, 0.0), atol=1e-6)


def test_an_approach_has_no_accelerations_to_start_from():
    path = accept(accelerations=[[0.5, 0.0], [0.0, 0.0]])
    assert np.isnan(path.accelerations[0]).all()
    np.testing.assert_allclose(path.sample(1 * S + 1)[1], (0.5, 0.0), atol=1e-6)


def test_in_the_middle_of_a_trajectory_only_what_is_left_is_done():
    path = accept(now_ns=round(2.5 * S))
    np.testing.assert_allclose(path.sample(round(2.5 * S))[0], (0.2, 0.3))


def test_joints_in_another_order():
    path = accept(names=("b", "a"))
    np.testing.assert_allclose(path.sample(3 * S)[0], (0.4, 0.3))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": ("a", "c")}, r"for joints \['a', 'c'\], this arm has \['a', 'b'\]"),
        ({"names": ("a",)}, "this arm has"),
        ({"times_ns": [], "positions": [], "velocities": []}, "no points"),
        ({"positions": [[0.1], [0.2]]}, r"needs 2 positions, got \[1\]"),
        ({"velocities": [[0.0, 0.0], []]}, r"all points or none must have 2 velocities, got \[0, 2\]"),
        ({"positions": [[0.1, np.nan], [0.3, 0.4]]}, "not finite"),
        ({"velocities": [[0.1, np.inf], [0.3, 0.4]]}, "not finite"),
        ({"accelerations": [[0.1, np.nan], [0.3, 0.4]]}, "acceleration that is not finite"),
        ({"accelerations": [[0.1], []]}, r"must have 2 accelerations, got \[0, 1\]"),
        ({"velocities": [[], []], "accelerations": [[0.1, 0.2], [0.0, 0.0]]}, "accelerations and no velocities"),
        ({"velocities": [[0.0, 0.0], [0.0, 0.1]]}, "the last velocity must be zero, that of b is 0.1"),
        ({"efforts": [[1.0, 1.0], []]}, "efforts, which are not supported"),
        ({"times_ns": [3 * S, 3 * S]}, "must rise"),
        ({"now_ns": 10 * S}, r"ended 7\.000 s ago"),
    ],
)
def test_rejected(changes, reason):
    with pytest.raises(TrajectoryRejectedError, match=reason):
        accept(**changes)
