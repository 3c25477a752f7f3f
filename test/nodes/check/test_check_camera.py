"""`check --camera` from recordings and folders of pictures, whole."""

import csv
import json
import shutil
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hand_eye.scene import (
    BASE_FROM_OPTICAL,
    CAMERA,
    ERROR,
    HEIGHT,
    START_NS,
    WIDTH,
    motion,
    picture,
    pixels,
    tool_poses,
    write_bag,
)

from sqap_vla_ros.nodes.check.hand_eye.clicks import read_clicks, stamp_text
from sqap_vla_ros.nodes.check.hand_eye.sights import Chooser, Sight
from sqap_vla_ros.nodes.check.main import main
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.conventions import invert_pose, pose_distance

TRUTH = motion(*ERROR)
TAG = ("--board", "tag:apriltag_36h11:7")
POSES = tool_poses(14)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("camera") / "bag", POSES, TRUTH)


def check(capsys, tmp_path, *arguments):
    picture = str(tmp_path / "check.png")
    status = main(["--camera", "--json", "--without-policy", "--picture", picture, *map(str, arguments)])
    report = json.loads(capsys.readouterr().out)
    assert report["go"] == (status == 0)
    return report


def texts(report, check, level=None):
    return [f["text"] for f in report["findings"] if f["check"] == check and level in (None, f["level"])]


def test_a_tag_on_the_tool_finds_the_error_of_the_camera(bag, capsys, tmp_path):
    report = check(capsys, tmp_path, "--bag", bag, *TAG)
    found = report["hand_eye"]
    assert report["go"]
    assert texts(report, "ring")[0].startswith("the ring of 2 patches, assumed as no policy was loaded, will lie on")
    assert found["pairs"] == len(POSES)
    assert found["held_out_rms_px"] < 1.5 < 5.0 < found["rms_px"]
    assert (found["parent"], found["child"]) == ("base_link", "camera_link")  # the driver's own frames stay
    link_from_optical = motion((0.0, 0.3, 0.0), (0.01, 0.02, 0.0))
    corrected = np.array(found["parent_from_child"]) @ link_from_optical
    metres, radians = pose_distance(corrected, BASE_FROM_OPTICAL @ invert_pose(TRUTH))
    assert metres < 0.02
    assert np.degrees(radians) < 1.0
    remedy = next(f["remedy"] for f in report["findings"] if f["check"] == "camera pose")
    assert "static_transform_publisher --x" in remedy
    assert "--frame-id base_link --child-frame-id camera_link" in remedy
    drawn = cv2.imread(str(tmp_path / "check.png"))
    assert drawn.shape == (HEIGHT, WIDTH, 3)


def test_a_camera_that_is_where_tf_has_it_needs_no_correction(capsys, tmp_path):
    report = check(capsys, tmp_path, "--bag", write_bag(tmp_path / "bag", POSES), *TAG)
    assert report["go"]
    assert {finding["level"] for finding in report["findings"]} == {"ok"}
    assert "TF has the camera as well as these pairs can tell" in texts(report, "camera pose")[0]


def test_a_far_error_puts_the_ring_beside_the_gripper(capsys, tmp_path):
    error = motion((0.0, 0.16, 0.0), (0.06, 0.0, 0.0))
    poses = tool_poses(40)
    seen = pixels(poses, error)
    poses = poses[((seen > 40) & (seen < (WIDTH - 40, HEIGHT - 40))).all(axis=1)][:12]
    report = check(capsys, tmp_path, "--bag", write_bag(tmp_path / "bag", poses, error), *TAG)
    assert not report["go"]
    assert "will not lie on the gripper: in" in texts(report, "ring", "fail")[0]
    assert texts(report, "camera pose", "warning")


def write_clicks(path, seen, stamps):
    rows = [{"stamp": stamp, "u": float(u), "v": float(v)} for stamp, (u, v) in zip(stamps, seen, strict=True)]
    if path.suffix == ".json":
        path.write_text(json.dumps([row | {"stamp": float(row["stamp"])} for row in rows]))
        return path
    with path.open("w") as file:
        writer = csv.DictWriter(file, ["stamp", "u", "v"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_pictures_are_written_clicked_in_and_judged(bag, capsys, tmp_path):
    folder = tmp_path / "pictures"
    report = check(capsys, tmp_path, "--bag", bag, "--pictures", folder)
    assert not report["go"]
    assert "14 pictures are in" in texts(report, "pictures")[0]
    assert not (folder / "clicks.csv").exists()  # the page's own would get another name from the browser
    stamps = sorted(picture.stem for picture in folder.glob("*.png"))
    assert cv2.imread(str(folder / f"{stamps[0]}.png")).shape == (HEIGHT, WIDTH, 3)
    assert f'"{stamps[-1]}"' in (folder / "clicks.html").read_text()
    write_clicks(folder / "clicks.csv", [], [])
    assert "has no clicks" in texts(check(capsys, tmp_path, "--clicks", folder / "clicks.csv"), "clicks")[0]

    write_clicks(folder / "clicks.csv", pixels(POSES, TRUTH), stamps)
    by_folder = check(capsys, tmp_path, "--clicks", folder / "clicks.csv")
    other = write_clicks(tmp_path / "clicks.json", pixels(POSES, TRUTH), stamps)
    by_bag = check(capsys, tmp_path, "--bag", bag, "--clicks", other)
    assert by_folder["go"]
    assert by_folder["hand_eye"] == by_bag["hand_eye"]
    assert by_bag["hand_eye"]["held_out_rms_px"] < 0.1


def test_clicks_are_not_overwritten(bag, capsys, tmp_path):
    folder = tmp_path / "pictures"
    check(capsys, tmp_path, "--bag", bag, "--pictures", folder)
    table = folder / "clicks.csv"
    table.write_text("stamp,u,v\n1700000000.0,1.0,2.0\n")
    assert main(["--camera", "--bag", str(bag), "--pictures", str(folder)]) == 2
    assert "has clicks in it" in capsys.readouterr().err


def sights(places_s, period_s=0.1):
    """Sights of a tool that stands at each place for so many seconds, with pictures, and goes there at once."""
    stamp_ns = START_NS
    for place, seconds in places_s:
        for _ in range(round(seconds / period_s)):
            stamp_ns += round(period_s * 1e9)
            pose = motion(metres=(place, 0.0, 0.2))
            yield Sight(stamp_ns, picture(pose), CAMERA, pose, invert_pose(BASE_FROM_OPTICAL))


def chosen(stream):
    chooser, kept = Chooser(), []
    for sight in stream:
        if chooser.wants(sight):
            chooser.keep(sight)
            kept.append(sight)
    return kept


def test_still_images_at_new_places_are_kept():
    kept = chosen(sights([(0.2, 0.3), (0.3, 0.3), (0.21, 0.3), (0.4, 0.3)]))
    assert [sight.base_from_tool[0, 3] for sight in kept] == [0.2, 0.3, 0.4]
    assert [(sight.stamp_ns - START_NS) // 100_000_000 for sight in kept] == [
        1,
        5,
        11,
    ]  # the first may be blurred


def test_a_slowly_moving_arm_is_kept_and_a_fast_one_is_not():
    assert len(chosen(sights([(0.2 + 0.004 * k, 0.1) for k in range(50)]))) == 7
    assert len(chosen(sights([(0.2 + 0.02 * k, 0.1) for k in range(20)]))) == 1


def test_images_that_change_are_kept_though_tf_stands_still():
    stream = [replace(s, base_from_tool=np.eye(4)) for s in sights([(0.2, 0.3), (0.4, 0.3)])]
    assert len(chosen(stream)) == 2


FAULTS = {
    "mirrored": ({"flip": 1}, TAG, "board", "only in the mirrored image"),
    "no tag": ({"tag": False}, TAG, "board", "tag:apriltag_36h11:7 was found in none of"),
    "camera_info of another size": ({"width": 640, "height": 480}, TAG, "images", "its camera_info describes 640x480"),
    "uncalibrated": ({"k": [0.0] * 9}, TAG, "images", "uncalibrated"),
    "wrong tool_frame": ({"frames": ("base_link", "hand")}, TAG, "images", "no transform base_link <- tool0"),
    "TF stands still": ({"tf": np.repeat(POSES[:1], 8, axis=0)}, TAG, "pairs", "by TF tool0 stays within 0 mm"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named(name, capsys, tmp_path):
    planted, arguments, row, text = FAULTS[name]
    report = check(capsys, tmp_path, "--bag", write_bag(tmp_path / "bag", POSES[:8], **planted), *arguments)
    assert not report["go"]
    assert any(text in found for found in texts(report, row, "fail")), report["findings"]
    assert all(f["remedy"] for f in report["findings"] if f["level"] in ("fail", "warning"))


def test_clicks_of_other_images_and_other_pictures_are_named(bag, capsys, tmp_path):
    seen = pixels(POSES, TRUTH)
    clicks = write_clicks(tmp_path / "other.csv", seen, [f"{k}.5" for k in range(len(seen))])
    report = check(capsys, tmp_path, "--bag", bag, "--clicks", clicks)
    assert "14 of 14 clicks have the stamp of no image, such as 0.500000000" in texts(report, "clicks", "fail")
    stamps = [stamp_text(START_NS + k * 2_000_000_000) for k in range(len(seen))]
    clicks = write_clicks(tmp_path / "larger.csv", 4 * seen + WIDTH, stamps)
    report = check(capsys, tmp_path, "--bag", bag, "--clicks", clicks)
    assert "clicks are outside the image of 320x240 pixels" in texts(report, "clicks", "fail")[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--board", "tag:qr:1"), "knows no dictionary 'qr'"),
        (("--bag", "no/such/bag"), "--bag no/such/bag does not exist"),
        (("--clicks", "no_such.csv"), "No such file"),
        ((*TAG, "--clicks", "clicks.csv"), "--board and --clicks both say"),
    ],
)
def test_wrong_arguments_are_told(arguments, text, capsys):
    assert main(["--camera", *arguments]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "time,x,y\n1,2,3\n"),
        ("a.csv", "stamp,u,v\n1.0,left,3\n"),
        ("a.csv", "stamp,u,v\n1e99999999,2,3\n"),
        ("a.json", "[1, 2]"),
        ("a.json", "{"),
    ],
)
def test_files_that_are_no_clicks_are_told(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"cannot be read as clicks .* columns stamp, u, v"):
        read_clicks(tmp_path / name)


def test_stamps_keep_their_nanoseconds(tmp_path):
    (tmp_path / "clicks.csv").write_text("stamp,u,v\n1700000000.123456789,1,2\n1700000001.5, 3.25, 4\n1700000002.0,,\n")
    with pytest.raises(OSError, match=r"none\.csv cannot be read as clicks \(No such file or directory\): it must be"):
        read_clicks(tmp_path / "none.csv")
    assert {stamp: pixel.tolist() for stamp, pixel in read_clicks(tmp_path / "clicks.csv").items()} == {
        1_700_000_000_123_456_789: [1.0, 2.0],
        1_700_000_001_500_000_000: [3.25, 4.0],
    }


@pytest.mark.skipif(shutil.which("node") is None, reason="the page's script needs a JavaScript engine: node")
def test_the_page_writes_the_pixel_that_was_clicked():
    page = share_path("config/views/clicks.html").read_text("utf-8")
    script = page.partition("<script>")[2].partition("</script>")[0].replace("/*STAMPS*/", '["1.5", "2.5"]')
    stubs = """
    const element = () => ({addEventListener() {}, getContext: () => new Proxy({}, {get: () => () => 0})});
    globalThis.document = {...element(), getElementById: element};
    globalThis.Image = class {};
    """
    box = "{left: 100, top: 50, width: 320, height: 240}"
    ask = f"clicks.set('2.5', pixel(100 + 160.25, 50 + 0.25, {box}, 640, 480)); console.log(table());"
    done = subprocess.run(["node", "-e", stubs + script + ask], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["stamp,u,v", "1.5,,", "2.5,320.00,0.00"]
