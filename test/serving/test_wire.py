"""The binary form: what goes in comes out, and bytes that are no message are refused and nothing else."""

import ast
import dataclasses
import struct
import tracemalloc
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sqap_vla_ros.serving
from sqap_vla_ros.contracts import CONTINUATIONS, ActionChunk, Commitment, PolicyInfo, TokenSelection
from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import LoadFailed, LoadProgress, PredictFailed, PredictRequest, Ready, Result
from sqap_vla_ros.serving.wire import MAX_PACKET, WireError, decode, encode

integers = st.integers(-(2**63), 2**63 - 1)
naturals = st.integers(0, 2**63 - 1)
requests = st.integers(1, 2**63 - 1)
uint16 = st.integers(0, 2**16 - 1)
pairs = st.tuples(uint16, uint16)
names = st.text(max_size=60)
texts = st.text(max_size=1000)
reals = st.floats()
sides = st.integers(1, wire.MAX_IMAGE_SIDE)
rows = arrays.arrays(np.float64, st.tuples(st.integers(0, 20), st.integers(0, 8)), elements=reals)
selections = st.builds(
    TokenSelection,
    arrays.arrays(np.int32, st.integers(0, 300)),
    arrays.arrays(np.uint8, st.integers(0, 300)),
    pairs,
    names,
    uint16,
    st.none() | pairs,
)
timings = st.dictionaries(st.text(max_size=15), reals, max_size=8)
chunks = st.builds(ActionChunk, integers, rows, reals, rows, st.none() | selections, timings, naturals)
infos = st.builds(
    PolicyInfo,
    texts,
    names,
    texts,
    naturals,
    st.integers(1, wire.MAX_HORIZON),
    reals,
    st.integers(0, 1000),
    pairs,
    names,
    names,
    st.booleans(),
)
poses = st.none() | arrays.arrays(np.float64, (4, 4), elements=reals)
pixels = st.none() | st.tuples(reals, reals)
commitments = st.none() | st.builds(
    Commitment,
    arrays.arrays(np.float64, st.tuples(st.integers(3, 20), st.just(7)), elements=st.floats(-1e300, 1e300)),
    st.integers(0, 3),
    st.sampled_from(CONTINUATIONS[1:]),
)
messages = st.one_of(
    st.builds(
        PredictRequest, requests, st.booleans(), sides, sides, integers, texts, pixels, poses, naturals, commitments
    ),
    st.builds(LoadProgress, texts),
    st.builds(Ready, infos, reals),
    st.builds(LoadFailed, texts),
    st.builds(Result, requests, chunks, reals),
    st.builds(PredictFailed, requests, texts),
)


def same(a: object, b: object) -> bool:
    """Equal in type and value, entry by entry; not a number equals itself."""
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return type(b) is tuple and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(messages)
def test_what_is_written_is_read(message):
    assert same(decode(encode(message)), message)


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda data: wire.HEADER + data))
def test_any_bytes_are_a_message_or_a_wire_error(data):
    try:
        message = decode(data)
    except WireError:
        return
    assert encode(message) == data


@given(messages, st.data())
def test_a_damaged_message_is_a_message_or_a_wire_error(message, data):
    packet = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    packet = packet[: data.draw(st.integers(0, len(packet)))] + data.draw(st.binary(max_size=8))
    try:
        again = decode(bytes(packet))
    except WireError:
        return
    assert encode(again) == packet


@pytest.mark.parametrize("count", [2**16, 2**31, 2**32 - 1])
def test_a_length_that_lies_allocates_nothing(count):
    packets = [wire.HEADER + bytes([1]) + struct.pack("<I", count)]  # a text
    packets.append(wire.HEADER + bytes([4]) + struct.pack("<qqII", 1, 0, count, count))  # the deltas of a result
    tracemalloc.start()
    for packet in packets:
        with pytest.raises(WireError, match="at most"):
            decode(packet)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_a_packet_above_the_limit_is_refused_by_both_sides():
    deltas = np.zeros((wire.MAX_HORIZON, wire.MAX_ACTION))
    selection = TokenSelection(
        np.zeros(wire.MAX_TOKENS, np.int32), np.zeros(wire.MAX_TOKENS, np.uint8), (64, 64), "", 0, None
    )
    chunk = ActionChunk(0, deltas, 0.1, deltas, selection, {"x" * 60 + str(n): 1.0 for n in range(64)})
    assert len(encode(Result(1, chunk, 0.1))) < MAX_PACKET  # all limits of the fields together fit
    with pytest.raises(WireError, match=f"more than {MAX_PACKET} bytes"):
        decode(wire.HEADER + bytes(MAX_PACKET))


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (LoadProgress(7), r"progress.text is int 7, expected a text"),
        (LoadProgress("x" * 5000), r"progress.text has 5000 bytes, at most 4096 are allowed: shorten it"),
        (LoadProgress("\ud800"), r"no Unicode"),
        (
            PredictFailed(2**80, ""),
            r"predict_failed.request is int 1208925819614629174706176, expected an integer from 1",
        ),
        (PredictFailed(1.0, ""), r"predict_failed.request is float 1.0, expected an integer"),
        (Ready(None, 0.1), r"ready.info is NoneType None, expected PolicyInfo"),
    ],
)
def test_a_value_that_does_not_fit_is_named(message, text):
    with pytest.raises(WireError, match=text):
        encode(message)


def test_an_array_may_be_narrower_but_not_wider():
    def result(deltas):
        return Result(1, ActionChunk(0, deltas, 0.1, np.zeros((1, 7))), 0.1)

    assert decode(encode(result(np.full((1, 7), 0.1, np.float32)))).chunk.deltas[0, 0] == np.float32(0.1)
    with pytest.raises(WireError, match=r"chunk.deltas is an array of float128|longdouble"):
        encode(result(np.zeros((1, 7), np.longdouble)))
    with pytest.raises(WireError, match=r"chunk.deltas is \[7\], expected 2 axes"):
        encode(result(np.zeros(7)))
    assert decode(encode(result(np.zeros((14, 14))[::2, ::2]))).chunk.deltas.shape == (7, 7)


def test_texts_for_people_always_fit():
    for text in ("x" * 10_000, "é" * 10_000, "a" * 4095 + "é", "\ud800"):
        assert encode(LoadProgress(wire.clip(text)))


def test_a_value_that_cannot_be_shown_is_still_named():
    class Shy:
        def __repr__(self):
            raise RuntimeError

    with pytest.raises(WireError, match=r"progress.text is Shy \?"):
        encode(LoadProgress(Shy()))


def test_nothing_in_the_room_can_unpickle():
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing", "joblib"}
    for path in Path(sqap_vla_ros.serving.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not banned & {name.split(".")[0] for name in names}, path


def test_another_version_and_an_impossible_commitment_are_said():
    packet = encode(LoadProgress("loading"))
    with pytest.raises(WireError, match=r"version 1 of the form.*the same version of sqap_vla_ros on both ends"):
        decode(b"SQ\x01" + packet[3:])
    goes_on = Commitment(np.zeros((3, 7)), 3, "guided")
    packet = encode(PredictRequest(1, False, 4, 4, 0, "pick", None, None, 0, goes_on))
    with pytest.raises(WireError, match="of a commitment's 3 actions 5 cannot be executed"):
        decode(packet.replace(struct.pack("<q", 3) + struct.pack("<I", 6), struct.pack("<q", 5) + struct.pack("<I", 6)))
