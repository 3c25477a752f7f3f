"""Observations to calibrate on are read from a bag as `replay` reads it, spread over the whole of it."""

import bag_factory
import numpy as np
import pytest
from bag_factory import START_NS, write_bag

from sqap_vla_ros import cli
from sqap_vla_ros.nodes.bags.observations import sample_observations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec, parse_static_transform
from sqap_vla_ros.nodes.bags.store import BagError


def compress(out, bag, *arguments):
    fixed = ("--checkpoint", "micro", "--recipe", "w4a4", "--dry-run", "--out", str(out / "policy.safetensors"))
    return cli.main(["compress", *fixed, "--calibration", str(bag), *arguments])


@pytest.mark.parametrize(("frames", "wanted"), [(9, 5), (31, 16), (3, 8), (8, 1)])
def test_samples_reach_from_the_first_image_to_the_last(tmp_path, frames, wanted):
    found = sample_observations(write_bag(tmp_path / "bag", frames=frames), wanted, ReplaySpec())
    assert len(found) == min(frames, wanted)
    tenths = [round((one.stamp_ns - START_NS) / 1e8) for one in found]
    assert tenths[0] == 0
    assert wanted == 1 or frames - 1 - tenths[-1] <= frames // wanted
    assert np.ptp(np.diff(tenths)) <= 1 if len(tenths) > 1 else True


def test_frames_of_another_robot_are_named_as_in_replay(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag")
    wrong = ("--base-frame", "panda_link0", "--tool-frame", "panda_hand_tcp")
    assert compress(tmp_path, bag, *wrong) == 2
    said = capsys.readouterr().err
    assert "panda_link0" in said
    assert "name the frames with --base-frame and --tool-frame" in said
    posed = write_bag(tmp_path / "posed", tf=False, pose_topic=True)
    camera = ("panda_link0", "camera", "0", "0", "1", "1", "0", "0", "0")
    assert compress(tmp_path, posed, *wrong, "--pose-topic", "/tool_pose", "--static-transform", *camera) == 0
    assert "5 observations from" in capsys.readouterr().out


def test_a_folder_without_metadata_is_a_bag(tmp_path, capsys):
    bag = write_bag(tmp_path / "bag")
    (bag / "metadata.yaml").unlink()
    assert compress(tmp_path, bag) == 0
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "one.bag").write_bytes(b"")
    assert compress(tmp_path, tmp_path / "several") == 2
    assert "is a folder of bags: name one of one.bag" in capsys.readouterr().err


@pytest.mark.parametrize("calibration", ["synthetic:99999999999", "synthetic:4097", "synthetic:" + "9" * 5000])
def test_more_observations_than_memory_holds_are_refused_before_they_are_made(tmp_path, calibration, capsys):
    assert compress(tmp_path, calibration) == 2
    assert "at most 4096 observations" in capsys.readouterr().err
    assert compress(tmp_path, "synthetic", "--observations", "999999999") == 2
    assert "--observations: must be at most 4096" in capsys.readouterr().err


def test_clocks_that_disagree_are_not_put_down_to_frame_names(tmp_path, monkeypatch):
    image, camera_info = bag_factory.image, bag_factory.camera_info
    monkeypatch.setattr(bag_factory, "image", lambda stamp_ns, number: image(stamp_ns + 5 * 10**9, number))
    monkeypatch.setattr(bag_factory, "camera_info", lambda stamp_ns: camera_info(stamp_ns + 5 * 10**9))
    with pytest.raises(BagError, match="extrapolation into the future") as error:
        sample_observations(write_bag(tmp_path / "bag"), 2, ReplaySpec())
    assert "compare the clocks" in str(error.value)
    assert "--base-frame" not in str(error.value)


@pytest.mark.parametrize("names", [("a", "a"), ("", "b"), ("a", "/"), ("a", "b\nc"), ("a", " b")])
def test_a_transform_that_tf_would_ignore_is_refused(names):
    with pytest.raises(ValueError, match="--static-transform"):
        parse_static_transform([*names, "0", "0", "0", "0", "0", "0", "1"])


@pytest.mark.parametrize("name", ["", "/", "a\nb"])
def test_a_frame_without_a_name_is_refused_before_work(tmp_path, name, capsys):
    assert cli.main(["replay", str(write_bag(tmp_path / "bag", frames=1)), "--base-frame", name]) == 2
    assert "--base-frame: " in capsys.readouterr().err
