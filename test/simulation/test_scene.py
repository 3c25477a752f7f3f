import numpy as np
import pinocchio
import pytest

from sqap_vla_ros.resources import share_path
from sqap_vla_ros.simulation.layout import sample_layout
from sqap_vla_ros.simulation.scene import ARM_JOINTS, COLOURS, SHAPES, ObjectKind, build_model
from sqap_vla_ros.simulation.world import TabletopWorld

URDF = "config/robots/tabletop_arm.urdf"


@pytest.fixture(scope="module")
def urdf() -> pinocchio.Model:
    return pinocchio.buildModelFromXML(share_path(URDF).read_text())


def test_urdf_and_mjcf_have_the_same_kinematics(urdf):
    world, data = TabletopWorld(), urdf.createData()
    tool = urdf.getFrameId("tool0")
    random = np.random.default_rng(0)
    low, high = urdf.lowerPositionLimit[:7], urdf.upperPositionLimit[:7]
    for _ in range(100):
        q = random.uniform(low, high)
        pinocchio.framesForwardKinematics(urdf, data, np.concatenate([q, np.zeros(urdf.nq - 7)]))
        np.testing.assert_allclose(world.forward(q), data.oMf[tool].homogeneous, atol=1e-6)


def test_urdf_and_mjcf_have_the_same_joint_limits(urdf):
    model = build_model()
    for i, name in enumerate(ARM_JOINTS):
        assert urdf.names[i + 1] == name
        limits = (urdf.lowerPositionLimit[i], urdf.upperPositionLimit[i])
        np.testing.assert_allclose(model.joint(name).range, limits, atol=1e-9)


def test_objects_weigh_the_same_in_every_shape_and_balance_at_their_centre():
    model = build_model()
    for slot in range(5):
        body = model.body(f"object{slot}")
        np.testing.assert_allclose(body.ipos, 0.0)
        assert body.mass[0] == pytest.approx(0.05)
        assert (body.inertia > 0).all()


def test_only_graspable_by_turning_the_hand():
    """A bar fits into the open hand across and not along; everything else fits as it comes."""
    hand_m = 0.08
    half = SHAPES["bar"].half_size_m
    assert 2 * half[0] > hand_m > 2 * half[1]
    assert all(2 * np.hypot(*SHAPES[name].half_size_m[:2]) < hand_m for name in ("cube", "can"))


def test_unknown_object_is_named():
    with pytest.raises(ValueError, match="unknown object 'red' 'banana'"):
        ObjectKind("red", "banana")
    assert str(ObjectKind("red", "cube")) == "red cube"
    assert len({ObjectKind(c, s) for c in COLOURS for s in SHAPES}) == len(COLOURS) * len(SHAPES)


def test_the_arm_stands_still_at_rest():
    world = TabletopWorld()
    world.reset(sample_layout(0, "pick"))
    start = world.arm_position
    world.step(500)
    assert np.abs(world.arm_position - start).max() < 1e-3
    assert world.state().target.xyz_m[2] == pytest.approx(0.028, abs=0.012)  # on the table
