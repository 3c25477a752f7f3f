"""Every kind of recording opens, and every kind of broken one says what is wrong and what helps."""

import shutil
import sqlite3

import bag_factory
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import CameraInfo
from sqap_vla_ros.msg import TokenSelection

from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.conversion import to_ros
from sqap_vla_ros.nodes.bags.store import BagError
from sqap_vla_ros.nodes.bags.writer import BagWriter

TYPES = ["/camera/camera_info", "/camera/image_raw", "/instruction", "/tf", "/tf_static"]


def rewrite(source, target, plugin, compression=None):
    """The same messages in another storage format."""
    typestore = get_typestore(Stores.ROS2_KILTED)
    with Bag(source) as bag:
        writer = Writer(target, version=9, storage_plugin=plugin)
        if compression is not None:
            writer.set_compression(compression, CompressionFormat.ZSTD)
        with writer:
            connections = {
                topic.name: writer.add_connection(topic.name, topic.type, typestore=typestore)
                for topic in bag.topics.values()
            }
            for topic, time_ns, data in bag.serialized(list(bag.topics)):
                writer.write(connections[topic], time_ns, data)
    return target


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return bag_factory.write_bag(tmp_path_factory.mktemp("bags") / "mcap")


@pytest.mark.parametrize(
    ("plugin", "compression"),
    [
        (StoragePlugin.SQLITE3, None),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
        (StoragePlugin.SQLITE3, CompressionMode.FILE),
        (StoragePlugin.MCAP, None),
    ],
)
def test_same_messages_in_every_storage(recording, tmp_path, plugin, compression):
    other = rewrite(recording, tmp_path / "other", plugin, compression)
    with Bag(recording) as first, Bag(other) as second:
        assert list(second.topics) == TYPES
        messages = [(m.topic, m.time_ns, m.message) for m in second.messages(TYPES)]
        assert messages == [(m.topic, m.time_ns, m.message) for m in first.messages(TYPES)]
        assert {type(m).__name__ for _, _, m in messages} == {"CameraInfo", "Image", "String", "TFMessage"}


def test_split_recording_is_read_as_one(recording, tmp_path):
    """rosbag2 splits by size: several files under one metadata.yaml."""
    split = rewrite(recording, tmp_path / "split", StoragePlugin.SQLITE3)
    (database,) = split.glob("*.db3")
    second = database.with_name("second.db3")
    shutil.copy(database, second)
    with sqlite3.connect(database) as early, sqlite3.connect(second) as late:
        middle = early.execute("SELECT (MIN(timestamp) + MAX(timestamp)) / 2 FROM messages").fetchone()[0]
        early.execute("DELETE FROM messages WHERE timestamp > ?", (middle,))
        late.execute("DELETE FROM messages WHERE timestamp <= ?", (middle,))
    metadata = split / "metadata.yaml"
    lines = metadata.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.strip() == f"- {database.name}")
    lines.insert(at + 1, lines[at].replace(database.name, second.name))
    metadata.write_text("\n".join(lines))
    with Bag(recording) as whole, Bag(split) as parts:
        assert [(m.topic, m.time_ns) for m in parts.messages(TYPES)] == [
            (m.topic, m.time_ns) for m in whole.messages(TYPES)
        ]


def test_a_file_of_the_folder_opens_it(recording):
    with Bag(next(recording.glob("*.mcap"))) as bag:
        assert bag.path == recording


def test_ros1_messages_become_ros2_messages(real_data):
    with Bag(real_data("jsk_demos/test-button-light.bag")) as bag:
        infos = [m.message for m in bag.messages(["/wide_stereo/left/camera_info"])]
        images = [m.message for m in bag.messages(["/wide_stereo/left/image_raw"])]
        raw = [data for _, _, data in bag.serialized(["/wide_stereo/left/camera_info"])]
    assert len(infos) == 292
    assert len(images) == 19
    assert isinstance(infos[0], CameraInfo)
    assert infos[0].k[0] == pytest.approx(430.32862)
    assert len(infos[0].d) == 5
    assert images[0].encoding == "bayer_bggr8"
    assert len(images[0].data) == 640 * 480
    assert deserialize_message(raw[0], CameraInfo) == infos[0]


def test_to_ros_agrees_with_the_wire():
    """rosbags' own reading of the bytes, turned into the ROS class, equals what rclpy reads from the same bytes."""
    message = bag_factory.camera_info(123)
    message.d = [0.1, -0.2, 0.0, 0.0, 0.05]
    message.roi.width = 7
    data = serialize_message(message)
    typestore = get_typestore(Stores.ROS2_KILTED)
    assert to_ros(typestore.deserialize_cdr(data, "sensor_msgs/msg/CameraInfo"), CameraInfo) == message


def test_own_messages_are_recorded_with_their_definition(tmp_path):
    selection = TokenSelection(method="sqap", grid_rows=16, grid_cols=16, indices=[1, 5], reasons=[0, 1])
    with BagWriter(tmp_path / "own") as writer:
        writer.write("/policy/token_selection", 10, selection)
    with Bag(tmp_path / "own") as bag:
        (recorded,) = bag.messages(["/policy/token_selection"])
    assert recorded.message == selection
    assert recorded.time_ns == 10


def test_writer_overwrites_nothing(recording):
    with pytest.raises(BagError, match="exists already"):
        BagWriter(recording)


def test_choice_lists_what_there_is(recording):
    info = ["sensor_msgs/msg/CameraInfo"]
    with Bag(recording) as bag:
        assert bag.choose(None, info, "camera_info", "--camera-info-topic").name == "/camera/camera_info"
        assert bag.choose(None, ["sensor_msgs/msg/Imu"], "x", "--x") is None
        with pytest.raises(BagError, match=r"no messages on /nowhere.*\n.*/camera/camera_info"):
            bag.choose("/nowhere", info, "camera_info", "--camera-info-topic")
        with pytest.raises(BagError, match=r"/tf is a tf2_msgs/msg/TFMessage"):
            bag.choose("/tf", info, "camera_info", "--camera-info-topic")


def test_several_candidates_are_listed_with_rates(real_data):
    with Bag(real_data("jsk_pr2eus/pr1040_camera_info.bag")) as bag, pytest.raises(BagError) as error:
        bag.choose(None, ["sensor_msgs/msg/CameraInfo"], "camera_info", "--camera-info-topic")
    assert "--camera-info-topic" in str(error.value)
    assert "/wide_stereo/left/camera_info [sensor_msgs/msg/CameraInfo] 28 messages, 2.8 Hz" in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        Bag(tmp_path / "nothing")


def test_not_a_bag(tmp_path):
    (tmp_path / "notes.txt").write_text("no bag")
    with pytest.raises(BagError, match="is not a bag"):
        Bag(tmp_path / "notes.txt")
    with pytest.raises(BagError, match="no rosbag2 bag"):
        Bag(tmp_path)


def test_without_metadata(recording, tmp_path):
    """A whole file needs no metadata.yaml; one that was cut off is repaired before the folder is indexed."""
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    (copy / "metadata.yaml").unlink()
    with Bag(copy) as bag:
        assert list(bag.topics) == TYPES
    (store,) = copy.glob("*.mcap")
    store.write_bytes(store.read_bytes()[:-100])
    with pytest.raises(BagError, match=r"mcap recover.*ros2 bag reindex"):
        Bag(copy)


@pytest.mark.parametrize("keep", [0, 10, 500, 0.5, 0.95])
def test_truncated_mcap(recording, tmp_path, keep):
    copy = tmp_path / "copy"
    shutil.copytree(recording, copy)
    (store,) = copy.glob("*.mcap")
    data = store.read_bytes()
    store.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(BagError, match=r"cannot be read.*mcap recover"), Bag(copy) as bag:
        list(bag.messages(TYPES))


def test_truncated_and_unindexed_ros1(real_data, tmp_path):
    data = real_data("jsk_demos/test-button-light.bag").read_bytes()
    cut = tmp_path / "cut.bag"
    cut.write_bytes(data[: len(data) // 2])  # the index is at the end
    with pytest.raises(BagError, match=r"cannot be read.*rosbag reindex"):
        Bag(cut)


def test_empty_recording_has_no_topics(tmp_path):
    with BagWriter(tmp_path / "empty"):
        pass
    with Bag(tmp_path / "empty") as bag:
        assert bag.topics == {}
        assert list(bag.messages(["/camera/image_raw"])) == []
        assert bag.duration_s == 0.0


def test_damage_in_the_middle_gives_what_came_before(recording, tmp_path):
    """A message whose bytes are not of its type stops the reading with its reason, after the good ones."""
    typestore = get_typestore(Stores.ROS2_KILTED)
    good = serialize_message(bag_factory.camera_info(1))
    with Writer(tmp_path / "bad", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/info", "sensor_msgs/msg/CameraInfo", typestore=typestore)
        writer.write(connection, 1, good)
        writer.write(connection, 2, good[:20])
    seen = []
    with Bag(tmp_path / "bad") as bag, pytest.raises(BagError, match="cannot be read"):
        seen.extend(bag.messages(["/info"]))
    assert np.all([message.time_ns == 1 for message in seen])
