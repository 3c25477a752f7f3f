"""Whatever bytes a recording holds, reading it gives messages or a BagError: no other exception, no endless reading."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from bag_factory import write_bag
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec
from sqap_vla_ros.nodes.bags.store import BagError

DAMAGE = st.tuples(
    st.sampled_from(["store", "metadata"]),
    st.floats(0.0, 1.0),  # where
    st.one_of(st.binary(min_size=0, max_size=16), st.just(b"\xff" * 8), st.just(b"\x00" * 8)),
    st.sampled_from(["overwrite", "insert", "cut"]),
)


def as_database(source: Path, target: Path) -> Path:
    typestore = get_typestore(Stores.ROS2_KILTED)
    with Bag(source) as bag, Writer(target, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {
            topic.name: writer.add_connection(topic.name, topic.type, typestore=typestore)
            for topic in bag.topics.values()
        }
        for topic, time_ns, data in bag.serialized(list(bag.topics)):
            writer.write(connections[topic], time_ns, data)
    return target


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    mcap = write_bag(folder / "mcap", frames=2)
    return {"mcap": mcap, "db3": as_database(mcap, folder / "db3")}


def damaged(data: bytes, where: float, replacement: bytes, how: str) -> bytes:
    at = int(where * len(data))
    if how == "cut":
        return data[:at]
    return data[:at] + replacement + data[at + (len(replacement) if how == "overwrite" else 0) :]


@pytest.mark.parametrize("kind", ["mcap", "db3"])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(damage=DAMAGE, alone=st.booleans())
def test_damage_is_a_bag_error_or_harmless(recordings, kind, damage, alone):
    part, where, replacement, how = damage
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "bag")
        shutil.copytree(recordings[kind], copy)
        (store,) = copy.glob(f"*.{kind}")
        file = store if part == "store" else copy / "metadata.yaml"
        file.write_bytes(damaged(file.read_bytes(), where, replacement, how))
        if alone:
            (copy / "metadata.yaml").unlink()
        with contextlib.suppress(BagError), Bag(copy) as bag:
            assert sum(1 for _ in bag.serialized(list(bag.topics))) <= 1000
            source = BagObservations(bag, ReplaySpec(instruction="pick up the can"))
            assert sum(1 for _ in source) <= 1000


def test_messages_that_a_database_keeps_in_its_log_are_named(recordings, tmp_path):
    copy = shutil.copytree(recordings["db3"], tmp_path / "bag")
    (store,) = copy.glob("*.db3")
    log = store.with_name(f"{store.name}-wal")
    log.touch()  # what a recorder that ended leaves
    Bag(copy).close()
    log.write_bytes(b"messages")
    with pytest.raises(
        BagError, match=rf"{log.name} holds messages that are not yet in {store.name}: .*wal_checkpoint"
    ):
        Bag(copy)
