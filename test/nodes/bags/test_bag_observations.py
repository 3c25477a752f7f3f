"""What a policy would have seen of a recording: every way to find the tool, and every way a recording falls short."""

import bag_factory
import numpy as np
import pytest
from bag_factory import START_NS, tool_pixel, tool_pose, write_bag
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.store import BagError
from sqap_vla_ros.nodes.messages import transform_message
from sqap_vla_ros.recordings.frames import nothing_observed
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.kinematics import ArmKinematics

CAMERA = ("base_link", "camera", bag_factory.BASE_FROM_OPTICAL)


def read(path, **options):
    with Bag(path) as bag:
        source = BagObservations(bag, ReplaySpec(**options))
        frames = list(source)
    return frames, source


def assert_tool_seen(frames, seconds, *, atol=1e-9):
    assert [frame.problem for frame in frames] == [""] * len(frames)
    for frame, second in zip(frames, seconds, strict=True):
        assert frame.observation is not None
        np.testing.assert_allclose(frame.observation.base_from_tool, tool_pose(second), atol=atol)
        np.testing.assert_allclose(frame.observation.gripper_pixel, tool_pixel(second), atol=1e-6)
        assert frame.stamp_ns == START_NS + round(second * 1e9)


def test_tf_is_interpolated_at_the_image_stamp(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag"))
    assert_tool_seen(frames, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert [frame.new_episode for frame in frames] == [True, False, False, False, False]
    assert {frame.observation.instruction for frame in frames} == {"pick up the can"}
    assert (source.counters.images, source.counters.observed, source.counters.problems) == (5, 5, {})


def test_tf_recorded_after_the_image_is_waited_for(tmp_path):
    frames, _ = read(write_bag(tmp_path / "bag", tf_late_s=0.15))
    assert_tool_seen(frames, [0.0, 0.1, 0.2, 0.3, 0.4])


def test_pose_topic_instead_of_tf(tmp_path):
    path = write_bag(tmp_path / "bag", tf=False, pose_topic=True)
    frames, source = read(path, static_transforms=(CAMERA,))
    assert_tool_seen(frames, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert "/tool_pose" in source.sources["tool pose"]


def test_joint_states_and_urdf_instead_of_tf(tmp_path):
    urdf = share_path("config/robots/tabletop_arm.urdf").read_text()
    arm = ArmKinematics.from_urdf(urdf, "base_link", "tool0")
    q = np.array([0.1, -0.2, 0.3, -2.0, 0.2, 2.0, -0.5])
    joints = {"finger_joint1": 0.01, **dict(zip(arm.joint_names, q.tolist(), strict=True))}
    path = write_bag(tmp_path / "bag", tf=False, joints=joints)
    frames, _ = read(path, urdf=urdf, static_transforms=(CAMERA,))
    for frame in frames:
        np.testing.assert_allclose(frame.observation.base_from_tool, arm.forward(q), atol=1e-9)


def test_without_any_pose_there_is_still_an_observation(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", tf=False))
    assert len(frames) == 5
    for frame in frames:
        assert frame.observation.base_from_tool is None
        assert frame.observation.gripper_pixel is None
        assert "no transforms" in frame.note
    assert source.sources["tool pose"] == "none in the bag"


def test_without_camera_info_there_is_no_ring_but_a_pose(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", info=False))
    for frame in frames:
        assert frame.observation.gripper_pixel is None
        assert "no camera_info" in frame.note
        assert frame.observation.base_from_tool is not None
    assert source.counters.without_camera_info == 5


def test_unsynchronised_camera_info(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", frames=12, info_offset_ns=3_000_000))
    assert [frame.index for frame in frames] == list(range(12))
    assert all("the nearest is +3.000 ms away" in frame.problem for frame in frames[:-1])
    assert source.counters.without_camera_info == 12
    assert source.counters.problems == {"no camera_info of its stamp": 12}


def test_camera_info_is_not_needed_where_there_is_no_pose_to_project(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", tf=False, frames=12, info_offset_ns=3_000_000))
    assert source.counters.observed == len(frames) == 12
    assert {frame.note for frame in frames} == {"the bag has no transforms: the gripper cannot be projected"}


def test_no_remedy_is_named_that_the_option_refuses(tmp_path):
    frames, _ = read(write_bag(tmp_path / "bag", frames=1, info_offset_ns=600_000_000))
    assert frames[0].problem.endswith("+600.000 ms away: give a calibration file as --camera-info")


def test_the_nearest_camera_info_or_a_given_one_serves_where_stamps_never_match(tmp_path):
    path = write_bag(tmp_path / "bag", frames=12, info_offset_ns=3_000_000)
    frames, source = read(path, camera_info_nearest_s=0.01)
    assert_tool_seen(frames, [0.1 * number for number in range(12)])
    assert source.counters.without_camera_info == 0
    assert source.sources["camera_info"].endswith("the nearest within 0.01 s")
    too_far, _ = read(path, camera_info_nearest_s=0.001)
    assert all(frame.observation is None for frame in too_far)
    frames, source = read(path, camera_info=bag_factory.camera_info(0))
    assert_tool_seen(frames, [0.1 * number for number in range(12)])
    assert source.sources["camera_info"] == "given, the same for every image"


def test_an_image_whose_stamp_is_there_already_has_its_reason(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", stamps_s=[0.0, 0.1, 0.1, 0.2]))
    assert [frame.observation is not None for frame in frames] == [True, True, False, True]
    assert "not newer" in frames[2].problem
    assert source.counters.problems == {"stamp not newer": 1}


def test_missing_tf_names_the_frames(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag"), tool_frame="flange")
    assert all(frame.observation is None for frame in frames)
    assert "base_link <- flange" in frames[0].problem
    assert source.counters.problems == {"transform missing": 5}


def test_tf_that_comes_too_late_is_given_up(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", frames=8, tf_late_s=2.0), tf_timeout_s=0.2)
    assert len(frames) == 8
    assert source.counters.problems["transform missing"] >= 5


def test_time_that_goes_back_starts_a_new_episode(tmp_path):
    """A looped recording: transforms of the first round must not serve the second."""
    seconds = [10.0, 10.1, 10.2, 0.0, 0.1]
    frames, source = read(write_bag(tmp_path / "bag", stamps_s=seconds))
    observed = [frame for frame in frames if frame.observation is not None]
    assert [frame.stamp_ns for frame in observed] == [START_NS + round(second * 1e9) for second in seconds]
    assert [frame.new_episode for frame in observed] == [True, False, False, True, False]
    assert source.counters.restarts == 1


def test_a_transform_of_something_else_that_goes_back_starts_nothing(tmp_path):
    """Two computers stamp odom -> wheel, and the clock of one is 5 s behind."""
    stamps_ns = [START_NS + 25_000_000 * n - (5 * NS_PER_S if n % 2 else 0) for n in range(20)]
    others = [transform_message(np.eye(4), stamp_ns, "odom", "wheel") for stamp_ns in stamps_ns]
    more = [(START_NS + 25_000_000 * n, "/tf", TFMessage(transforms=[other])) for n, other in enumerate(others)]
    frames, source = read(write_bag(tmp_path / "bag", more=more))
    assert_tool_seen(frames, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert [frame.new_episode for frame in frames] == [True, False, False, False, False]
    assert source.counters.restarts == 0


def test_stride(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", frames=7), stride=3)
    assert [frame.index for frame in frames] == [0, 3, 6]
    assert_tool_seen(frames, [0.0, 0.3, 0.6])
    assert (source.counters.images, source.counters.used) == (7, 3)
    assert source.strided == 3


def test_segments_change_the_instruction_and_the_episode(tmp_path):
    path = write_bag(tmp_path / "bag", instruction=None)
    frames, _ = read(path, segments=((0.0, "open the drawer"), (0.25, "close the drawer")))
    said = [frame.observation.instruction for frame in frames]
    assert said == ["open the drawer"] * 3 + ["close the drawer"] * 2
    assert [frame.new_episode for frame in frames] == [True, False, False, True, False]


def test_before_the_first_segment_there_is_no_instruction(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", instruction=None), segments=((0.25, "close the drawer"),))
    assert [frame.observation is None for frame in frames] == [True, True, True, False, False]
    assert source.counters.problems == {"no instruction": 3}


def test_an_instruction_that_nobody_can_read_is_named(tmp_path):
    frames, source = read(write_bag(tmp_path / "bag", instruction="\u200b"))
    assert all("the instruction has no visible character" in frame.problem for frame in frames)
    assert source.counters.problems == {"no instruction": 5}


def test_no_instruction_at_all(tmp_path):
    with Bag(write_bag(tmp_path / "bag", instruction=None)) as bag, pytest.raises(BagError, match="--instruction"):
        BagObservations(bag, ReplaySpec())


def test_no_image_topic_lists_what_there_is(tmp_path):
    with (
        Bag(write_bag(tmp_path / "bag", images=False)) as bag,
        pytest.raises(BagError, match=r"no topic of type sensor_msgs/msg/Image.*\n(.*\n)*.*/tf \["),
    ):
        BagObservations(bag, ReplaySpec())


def test_wrong_type_of_the_image_topic(tmp_path):
    path = write_bag(tmp_path / "bag")
    with Bag(path) as bag, pytest.raises(BagError, match="/tf is a tf2_msgs/msg/TFMessage, the image needs"):
        BagObservations(bag, ReplaySpec(image_topic="/tf"))


def test_stale_images_are_counted(tmp_path):
    """Stamped two seconds before they were recorded."""
    path = write_bag(tmp_path / "bag", stamps_s=[-2.0, -1.9, -1.8])
    frames, source = read(path, tf_timeout_s=5.0)
    assert source.counters.stale == 3
    assert frames[0].age_s == pytest.approx(2.002)


def test_ros1_bag_of_a_real_robot(real_data):
    """19 Bayer images, 292 camera_infos of a PR2: all 19 pair up; the lens distorts, so the pixel is not K alone."""
    tool = np.eye(4)
    tool[:3, 3] = (0.1, 0.1, 0.5)
    frames, _ = read(
        real_data("jsk_demos/test-button-light.bag"),
        instruction="press the button",
        base_frame="wide_stereo_optical_frame",
        tool_frame="tool",
        static_transforms=(("wide_stereo_optical_frame", "tool", tool),),
    )
    assert len(frames) == 19
    assert all(frame.observation.image.shape == (480, 640, 3) for frame in frames)
    u, v = frames[0].observation.gripper_pixel
    assert 400 < u < 325.13 + 430.33 * 0.2
    assert 320 < v < 240.86 + 430.16 * 0.2


@pytest.mark.parametrize("given", [{}, {"camera_info": bag_factory.camera_info(0)}])
def test_images_without_a_stamp_are_said(tmp_path, monkeypatch, given):
    image = bag_factory.image
    monkeypatch.setattr(bag_factory, "image", lambda stamp_ns, number: image(0, number))
    frames, source = read(write_bag(tmp_path / "bag", frames=3), **given)
    assert source.counters.problems == {"stamp zero": 3}
    assert all("leaves header.stamp empty" in frame.problem for frame in frames)
    said = nothing_observed(source.counters.used, source.counters.problems, source.counters.reasons)
    assert said.endswith("record again with a driver that stamps its images")
