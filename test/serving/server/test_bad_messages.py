"""Messages whose pictures cannot be used: the answer has the request's number, and says what the picture must be."""

import numpy as np
import pytest
from workers import observation, wait_until

pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")

import msgpack
from websockets.sync.client import connect
from workers.requests import IMAGE
from workers.served import Served

from sqap_vla_ros.serving import wire
from sqap_vla_ros.serving.events import PredictFailed, PredictRequest
from sqap_vla_ros.serving.frames import join_request, seal, unseal
from sqap_vla_ros.serving.server.observations import ObservationReader
from sqap_vla_ros.serving.server.packing import pack, read_header, unpack

TIMEOUT_S = 30.0
UNDER_ANOTHER_NAME = (
    "expected 'image'; send it under that name, or start the server with --image-key and the name it has"
)
TOO_MANY = IMAGE.tolist()  # numbers travel as arrays
PICTURES = {
    "no picture": (
        {"__image__": True, "format": "png", "data": b"no"},
        "the image cannot be decoded as PNG: it is none",
    ),
    "half a picture": ({"__image__": True, "format": "jpeg", "data": b"\xff\xd8" * 3000}, "cannot be decoded as JPEG"),
    "wrong dtype": ({"__ndarray__": True, "data": b"", "dtype": "O", "shape": [0]}, "dtype must be of numbers"),
    "wrong size": ({"__ndarray__": True, "data": b"", "dtype": "uint8", "shape": [9]}, "needs 9 bytes, got 0"),
    "a list": (TOO_MANY, "numbers travel as arrays"),
}


@pytest.fixture(scope="module")
def served():
    with Served() as served:
        assert wait_until(lambda: served.engine.problem is None)
        yield served


def message(picture, **changes):
    payload = {"images": {"agentview": picture}, "task_description": "pick"}
    return msgpack.packb({"type": "observation", "payload": payload, "seq": 41, "timestamp": 0.0, **changes})


@pytest.mark.parametrize("path", ["/vla-eval", "/"])
@pytest.mark.parametrize("name", PICTURES)
def test_vla_evals_client_gets_the_number_of_its_request(served, path, name):
    picture, text = PICTURES[name]
    with connect(served.url + path, compression=None) as client:
        if path == "/":
            assert unpack(client.recv(TIMEOUT_S))["type"] == "hello"
        client.send(message(picture))
        answer = unpack(client.recv(TIMEOUT_S))
        assert (answer["type"], answer["seq"]) == ("error", 41)
        assert text in answer["payload"]["error"]
        good = {"images": {"agentview": IMAGE}, "task_description": "pick"}
        client.send(pack({"type": "observation", "payload": good, "seq": 42}, keys=str))
        answer = unpack(client.recv(TIMEOUT_S))
        assert (answer["type"], answer["seq"]) == ("action", 42)


@pytest.mark.parametrize(
    ("frame", "number"),
    [
        (msgpack.packb({"seq": 7}), 7),
        (msgpack.packb({"seq": 7, "type": "observation"})[:-4], 7),  # cut off behind its number
        (msgpack.packb({"type": [1, [2]], "seq": 7}), 7),
        (msgpack.packb({"seq": "7"}), 0),
        (msgpack.packb({"seq": True}), 0),
        (msgpack.packb({"seq": [7]}), 0),
        (msgpack.packb([7]), 0),
        (b"\xc1", 0),
        (b"\xdf\xff\xff\xff\xff", 0),  # a map of four billion entries, of which none come
        (b"", 0),
    ],
)
def test_a_number_is_repeated_where_it_can_be_read(served, frame, number):
    with connect(served.url + "/vla-eval", compression=None) as client:
        client.send(frame)
        answer = unpack(client.recv(TIMEOUT_S))
        assert (answer["type"], answer["seq"]) == ("error", number)


def test_a_header_takes_no_more_than_scalars():
    assert read_header(msgpack.packb({"type": {"a": [0] * 100}, "seq": 3}), "type", "seq") == {"type": None}
    assert read_header(msgpack.packb({"a": {"seq": 5}, "type": "x"}), "type", "seq") == {"type": "x"}


@pytest.mark.parametrize(
    "picture",
    [[[[1, 2, 3]]], None, "view.png", b"view", {"rgb": "view.png"}],
    ids=["list", "nothing", "text", "bytes", "map"],
)
def test_openpis_client_is_told_that_its_picture_came_and_what_it_must_be(served, picture):
    with connect(served.url + "/openpi", compression=None) as client:
        client.recv(TIMEOUT_S)
        client.send(
            pack({"observation/image": picture, "observation/wrist_image": IMAGE, "prompt": "pick"}, keys=bytes)
        )
        said = client.recv(TIMEOUT_S)
        assert said.startswith("image 'image' must be [height, width, 3] of uint8, RGB; got ")
        client.send(pack({"observation/wrist_image": IMAGE, "prompt": "pick"}, keys=bytes))
        assert client.recv(TIMEOUT_S) == f"the image is missing: got wrist_image, {UNDER_ANOTHER_NAME}"


DROID = {
    "observation/exterior_image_1_left": IMAGE,
    "observation/wrist_image_left": IMAGE,
    "observation/joint_position": np.zeros(7),
    "prompt": "pick",
}
ALOHA = {"images": {"cam_high": IMAGE, "cam_low": IMAGE}, "state": np.zeros(14), "prompt": "pick"}
NESTED = {"observation": {"image_0": IMAGE, "state": np.zeros(8)}, "prompt": "pick"}


@pytest.mark.parametrize(
    ("sent", "names"),
    [
        (DROID, "exterior_image_1_left, wrist_image_left"),
        (ALOHA, "cam_high, cam_low"),
        (NESTED, "image_0"),
        ({"a/camera": IMAGE, "jpeg": b"\xff\xd8", "prompt": "pick"}, "a/camera, jpeg"),
        ({"wrist\x1b[31m": IMAGE, "prompt": "pick"}, "wrist\\x1b[31m"),
        ({"observation/a": IMAGE, "images/a": IMAGE, "prompt": "pick"}, "images/a, observation/a"),
        ({"x" * 10_000: {"a": IMAGE, "b": IMAGE}, "prompt": "pick"}, "none"),  # such names would fill the memory
        ({"state": np.zeros(8), "prompt": "pick"}, "none"),
    ],
)
def test_openpis_client_is_told_which_pictures_came_under_other_names(served, sent, names):
    with connect(served.url + "/openpi", compression=None) as client:
        client.recv(TIMEOUT_S)
        client.send(pack(sent, keys=bytes))
        assert client.recv(TIMEOUT_S) == f"the image is missing: got {names}, {UNDER_ANOTHER_NAME}"


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("observation/exterior_image_1_left", DROID),
        ("exterior_image_1_left", DROID),
        ("cam_high", ALOHA),
        ("images/cam_high", ALOHA),
        ("image_0", NESTED),
        ("observation/a", {"observation/a": IMAGE, "images/a": ~IMAGE, "prompt": "pick"}),
        ("image", {"image": IMAGE, "observation/image": ~IMAGE, "prompt": "pick"}),
    ],
)
def test_openpis_picture_has_the_name_that_the_server_was_started_with(key, sent):
    with (
        Served("policy_doubles:straight", reader=ObservationReader(key)) as served,
        connect(served.url + "/openpi", compression=None) as client,
    ):
        assert wait_until(lambda: served.engine.problem is None)
        client.recv(TIMEOUT_S)
        client.send(pack(sent, keys=bytes))
        assert unpack(client.recv(TIMEOUT_S))["actions"].shape == (16, 7)


def test_a_picture_that_is_chosen_by_its_name_is_looked_at_whatever_it_is():
    key = "observation/exterior_image_1_left"
    with (
        Served(reader=ObservationReader(key)) as served,
        connect(served.url + "/openpi", compression=None) as client,
    ):
        client.recv(TIMEOUT_S)
        client.send(pack({key: [1, 2], "prompt": "pick"}, keys=bytes))
        assert client.recv(TIMEOUT_S).endswith("must be [height, width, 3] of uint8, RGB; got a list")
        client.send(pack({"exterior_image_1_left": IMAGE, "prompt": "pick"}, keys=bytes))
        assert client.recv(TIMEOUT_S).startswith(f"the image is missing: got exterior_image_1_left, expected {key!r};")


def test_vla_evals_client_is_told_which_pictures_came_beside_the_map(served):
    with connect(served.url + "/vla-eval", compression=None) as client:
        payload = {"agentview": IMAGE, "task_description": "pick"}
        client.send(pack({"type": "observation", "payload": payload, "seq": 1}, keys=str))
        said = unpack(client.recv(TIMEOUT_S))["payload"]["error"]
        assert said == "images must be a map from camera names to pictures, got nothing; pictures came as agentview"


def test_the_packages_own_client_gets_the_number_of_its_request_too(served):
    """It waits for the answer of that number, so any other would be a prediction that never comes."""
    sent = observation()
    request = PredictRequest.of(41, sent, seed=0, reset=False)
    short = unseal(join_request(request, sent.image))[:-3]
    with connect(served.url + "/native", compression=None) as client:
        client.recv(TIMEOUT_S)
        client.send(seal(bytes(short)))
        answer = wire.decode(bytes(unseal(client.recv(TIMEOUT_S))))
        assert isinstance(answer, PredictFailed)
        assert (answer.request, answer.text) == (41, "an image of 64 x 48 pixels needs 9216 bytes, got 9213")


def test_numbers_beyond_what_the_form_holds_do_not_end_the_connection(served):
    with connect(served.url + "/vla-eval", compression=None) as client:
        for number in (-(2**63), 2**64 - 1):
            client.send(message(np.zeros(0).tolist(), seq=number))
            assert unpack(client.recv(TIMEOUT_S))["seq"] == number
