"""Recordings as other programs and older robots write them: each opens and gives the same pixel, or says why not."""

import contextlib
import re
import shutil
import sqlite3

import bag_factory
import numpy as np
import pytest
from bag_factory import tool_pixel, write_bag
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.store import BagError, unreadable

NO_HASH = "RIHS01_" + "0" * 64


def pixels(path, **options):
    with Bag(path) as bag:
        frames = list(BagObservations(bag, ReplaySpec(**options)))
    assert [frame.problem for frame in frames] == [""] * len(frames)
    return [frame.observation.gripper_pixel for frame in frames]


def assert_reference(path, **options):
    np.testing.assert_allclose(pixels(path, **options), [tool_pixel(0.1 * n) for n in range(5)], atol=1e-6)


def copy(source, target, *, plugin=StoragePlugin.MCAP, rename=None, topics=None, extra=None):
    """The same messages, with types called as `rename` says, topics as `topics` does, and what `extra` adds."""
    typestore = get_typestore(Stores.ROS2_KILTED)
    with Bag(source) as bag, Writer(target, version=9, storage_plugin=plugin) as writer:
        if extra is not None:
            extra(writer, typestore)
        connections = {}
        for topic in bag.topics.values():
            name = (rename or (lambda kind: kind))(topic.type)
            definition, _ = typestore.generate_msgdef(topic.type, ros_version=2)
            connections[topic.name] = writer.add_connection(
                (topics or {}).get(topic.name, topic.name), name, typestore=typestore, msgdef=definition, rihs01=NO_HASH
            )
        for topic, time_ns, data in bag.serialized(list(bag.topics)):
            writer.write(connections[topic], time_ns, data)
    metadata = target / "metadata.yaml"  # writers other than rosbag2 know no hash
    metadata.write_text(
        re.sub(r"type_description_hash:\s+RIHS01_0+", "type_description_hash: ''", metadata.read_text())
    )
    return target


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_bag(tmp_path_factory.mktemp("foreign") / "good")


def test_a_folder_called_bag_and_the_file_in_it(good, tmp_path):
    folder = tmp_path / "folder.bag"
    shutil.copytree(good, folder)
    assert_reference(folder)
    (store,) = folder.glob("*.mcap")
    assert_reference(store)
    assert_reference(folder / "metadata.yaml")


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_file_that_stands_alone(good, tmp_path, plugin):
    whole = copy(good, tmp_path / "whole", plugin=plugin)
    (store,) = (path for path in whole.iterdir() if path.suffix in (".mcap", ".db3"))
    alone = tmp_path / "elsewhere" / store.name
    alone.parent.mkdir()
    shutil.copy(store, alone)
    assert_reference(alone)
    assert_reference(alone.parent)  # the folder has no metadata.yaml, and needs none


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_types_without_msg_in_their_names(good, tmp_path, plugin):
    short = copy(good, tmp_path / "short", plugin=plugin, rename=lambda kind: kind.replace("/msg/", "/"))
    assert_reference(short)


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_topic_that_is_not_used_makes_no_bag_unreadable(good, tmp_path, plugin):
    def service_event(writer, typestore):
        definition = "MSG: demo_msgs/srv/Set_Event\nbool value\n---\nbool ok\n"
        writer.add_connection(
            "/set/_service_event", "demo_msgs/srv/Set_Event", typestore=typestore, msgdef=definition, rihs01=NO_HASH
        )
        writer.add_connection("/strange", "no_such_msgs/msg/Thing", typestore=typestore, msgdef="", rihs01=NO_HASH)

    assert_reference(copy(good, tmp_path / "events", plugin=plugin, extra=service_event))


@pytest.mark.parametrize("name", ["tf", "/robot/tf"])
def test_transforms_on_a_topic_of_another_name(good, tmp_path, name):
    assert_reference(copy(good, tmp_path / "moved", topics={"/tf": name}))


def test_frames_with_a_leading_slash(tmp_path, monkeypatch):
    """ROS 1 drivers write `/camera`; tf2 refuses such a name."""
    transform, image = bag_factory.transform_message, bag_factory.image

    def with_slash(stamp_ns, number):
        message = image(stamp_ns, number)
        message.header.frame_id = "/camera"
        return message

    monkeypatch.setattr(bag_factory, "image", with_slash)
    monkeypatch.setattr(
        bag_factory, "transform_message", lambda pose, ns, parent, child: transform(pose, ns, f"/{parent}", f"/{child}")
    )
    assert_reference(write_bag(tmp_path / "bag"))


def write_ros1(path, good, *, second_type):
    """The same messages as ROS 1 has them; the camera's place is published by a second publisher of /tf."""
    store = get_typestore(Stores.ROS1_NOETIC)
    ros2 = get_typestore(Stores.ROS2_KILTED)
    names = {"tf/msg/tfMessage", "tf2_msgs/msg/TFMessage"}
    for name in names:
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms\n", name))

    def as_ros1(value):
        if isinstance(value, list):
            return [as_ros1(item) for item in value]
        kind = getattr(type(value), "__msgtype__", None)
        if kind is None:
            return value
        fields = {name: as_ros1(item) for name, item in vars(value).items()}
        target = store.types[kind]
        wanted = {name: name for name in target.__dataclass_fields__ if name != "__msgtype__"}
        if kind == "std_msgs/msg/Header":
            fields["seq"] = 0
        return target(*(fields[name] if name in fields else fields[name.lower()] for name in wanted))

    def stamped(transform, offset_s):
        header = transform.header
        time = type(header.stamp)(header.stamp.sec + offset_s, header.stamp.nanosec)
        return type(transform)(type(header)(0, time, header.frame_id), transform.child_frame_id, transform.transform)

    with Bag(good) as bag, Ros1Writer(path) as writer:
        connections = {}
        for topic, time_ns, data in bag.serialized(list(bag.topics)):
            kind = bag.topics[topic].type
            message = as_ros1(ros2.deserialize_cdr(data, kind))
            target, name = ("/tf", second_type) if topic == "/tf_static" else (topic, kind)
            if (target, name) not in connections:
                caller = f"/publisher_of_{name.replace('/', '_')}"
                connections[target, name] = writer.add_connection(target, name, typestore=store, callerid=caller)
            messages = [message]
            if topic == "/tf_static":  # ROS 1 publishers repeat fixed transforms: one before and one after the images
                messages = [
                    store.types[name]([stamped(t, offset_s) for t in message.transforms]) for offset_s in (-1, 9)
                ]
            for each in messages:
                writer.write(connections[target, name], time_ns, store.serialize_ros1(each, name))
    return path


@pytest.mark.parametrize("second_type", ["tf/msg/tfMessage", "tf2_msgs/msg/TFMessage"])
def test_ros1_tf_with_two_types(good, tmp_path, second_type):
    assert_reference(write_ros1(tmp_path / "old.bag", good, second_type=second_type))


def test_a_file_that_only_looks_like_a_bag(tmp_path):
    (tmp_path / "x.bag").write_text("no bag")
    with pytest.raises(BagError, match=r"x\.bag is not a ROS 1 bag, which begins with"):
        Bag(tmp_path / "x.bag")
    shutil.copy(tmp_path / "x.bag", tmp_path / "y.bag")
    with pytest.raises(BagError, match=r"folder of bags: name one of x\.bag, y\.bag"):
        Bag(tmp_path)


def test_repairs_are_offered_where_they_help(good, tmp_path):
    database = copy(good, tmp_path / "yaml_metadata", plugin=StoragePlugin.SQLITE3)
    (store,) = database.glob("*.db3")
    store.write_bytes(store.read_bytes()[:300])
    with pytest.raises(BagError) as error:
        Bag(database)
    assert "sqlite3" in str(error.value)
    assert "mcap recover" not in str(error.value)
    alone = tmp_path / "cut.mcap"
    (store,) = good.glob("*.mcap")
    alone.write_bytes(store.read_bytes()[:-200])
    with pytest.raises(BagError, match=r"cut\.mcap cannot be read: .*`mcap recover` on cut\.mcap$"):
        Bag(alone)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("", "Its metadata.yaml is damaged: make it anew with `ros2 bag reindex"),
        ("", "(the file is empty)"),
        ("a: b: c\n  - [", "(the file is not valid YAML near line 1)"),
        (None, "Bring back what its metadata.yaml lists, or read the files that are there after `ros2 bag reindex"),
    ],
)
def test_damaged_metadata_needs_no_recovery_of_the_recording(good, tmp_path, metadata, said):
    bag = tmp_path / "bag"
    shutil.copytree(good, bag)
    text = (bag / "metadata.yaml").read_text()
    (store,) = bag.glob("*.mcap")
    (bag / "metadata.yaml").write_text(text.replace(store.name, "gone.mcap") if metadata is None else metadata)
    with pytest.raises(BagError, match=re.escape(said)) as error:
        Bag(bag)
    assert "recover" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "to", "said"),
    [
        (r"version: \d+", "version: 99", "is of rosbag2's format 99, which is newer than what is read"),
        ("storage_identifier: mcap", "storage_identifier: sqlite3", "names another storage than that of the files"),
        (
            r"(compression_format: ).*(\s+compression_mode: ).*",
            r"\1lz4\2FILE",
            "is compressed as 'lz4': rosbag2 writes zstd",
        ),
        ("^", "[" * 5000, "Its metadata.yaml is damaged"),
        ("^", "\udcff", "Its metadata.yaml is damaged"),
    ],
    ids=["version", "storage", "compression", "depth", "bytes"],
)
def test_metadata_that_says_something_else_needs_no_recovery(good, tmp_path, pattern, to, said):
    bag = tmp_path / "bag"
    shutil.copytree(good, bag)
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(re.sub(pattern, to, text, count=1), errors="surrogateescape")
    with pytest.raises(BagError, match=re.escape(said)) as error:
        Bag(bag)
    assert "recover" not in str(error.value)


def test_a_database_that_is_no_bag_is_not_to_be_recovered(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "other.db3")) as database:
        database.execute("create table notes (text)")
        database.commit()
    (tmp_path / "random.db3").write_bytes(b"\x07" * 5000)
    for name in ("other.db3", "random.db3"):
        with pytest.raises(BagError, match=f"{name} is no database of rosbag2: ") as error:
            Bag(tmp_path / name)
        assert "recover" not in str(error.value)


def test_topics_that_are_no_ros_messages_are_told(good, tmp_path):
    (store,) = good.glob("*.mcap")
    other = tmp_path / "other.mcap"
    other.write_bytes(store.read_bytes().replace(b"\x03\0\0\0cdr", b"\x03\0\0\0xml"))
    with Bag(other) as bag, pytest.raises(BagError, match="topics that are no ROS messages but xml"):
        BagObservations(bag, ReplaySpec())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"ros2", b"ros1", "is a ROS 1 recording in an MCAP file: give the .bag file that it was converted from"),
        (b"ros2", b"logs", "is no ROS 2 recording: its MCAP profile is 'logs', 'ros2' is needed"),
        (b"MCAP0\r\n", b"MCAP0\n", "was copied as text, which changed its line ends: copy it again as binary"),
        (b"\x89MCAP0", b"<!DOCTY", "is no MCAP file, which begins with"),
    ],
)
def test_an_mcap_file_that_is_no_recording_of_ros2_says_what_it_is(good, tmp_path, old, new, said):
    (store,) = good.glob("*.mcap")
    other = tmp_path / "other.mcap"
    other.write_bytes(store.read_bytes().replace(old, new, 1))
    with pytest.raises(BagError, match=re.escape(f"{other} {said}")) as error:
        Bag(other)
    assert "recover" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.mcap.zstd", "is compressed as a file: give the folder that its metadata.yaml is in, or `zstd -d` it"),
        ("folder/a.mcap.zstd", "holds a.mcap.zstd and no metadata.yaml: `zstd -d` the file"),
        ("a.bag.active", "was not finished: rename it to end in .bag, then `rosbag reindex` it"),
        ("a.bag", "is a bag of an old format (#ROSBAG V1.2): `rosbag migrate` it"),
    ],
)
def test_what_another_tool_makes_readable_is_said_with_the_tool(tmp_path, name, said):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"#ROSBAG V1.2\n" + bytes(200))
    with pytest.raises(BagError, match=re.escape(said)):
        Bag(file if "/" not in name else file.parent)


def test_what_another_library_raised_is_told_without_its_brackets(tmp_path):
    bag = tmp_path / "cut.bag"
    bag.touch()
    error = unreadable(bag, RuntimeError("Bag index looks damaged: ('Header could not be read from file.',)"))
    assert "looks damaged: Header could not be read from file. If the recording" in str(error)
