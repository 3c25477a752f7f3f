"""Damaged and hostile files of every kind that users name, each made from a seed, and the functions that read them.

A case is `TARGETS[name](folder, seed)`: it writes a file and reads it. Reading may succeed or raise ValueError or
OSError, which every command turns into one sentence. Anything else is a finding.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from PIL import Image as Picture
from sensor_msgs.msg import CompressedImage, Image

from sqap_vla_ros.compression.compress import require_loadable
from sqap_vla_ros.compression.files.job import compress_to_file
from sqap_vla_ros.compression.files.storage import load_compressed
from sqap_vla_ros.compression.recipe import list_recipes, load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.nodes.bags.bag import Bag
from sqap_vla_ros.nodes.bags.observations import BagObservations
from sqap_vla_ros.nodes.bags.spec import ReplaySpec, read_camera_info_message
from sqap_vla_ros.nodes.images import SUPPORTED_ENCODINGS, compressed_to_rgb, to_rgb
from sqap_vla_ros.policy.checkpoints.inspect import describe
from sqap_vla_ros.policy.checkpoints.load import load_checkpoint, open_checkpoint
from sqap_vla_ros.policy.checkpoints.one_file import save_checkpoint
from sqap_vla_ros.policy.checkpoints.published import save_published
from sqap_vla_ros.policy.cogact import CogACT, CogACTPolicy
from sqap_vla_ros.policy.config import MICRO, ActionHeadConfig, DecoderConfig, PolicyConfig, TowerConfig, VisionConfig
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.policy.pictures import read_picture
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.camera import CameraModel, project_tool

REFUSALS = (ValueError, OSError)
_LARGE = 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1
_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 0.0, -0.0, 1e308, float("nan"), float("inf"), 2**70, *_LARGE),
    *("", "x", "4", "nan", "../../etc", "\x00", "é中", "%s{0}", "a" * 3000),
    *([], {}, [[]], [None], {"": {}}, [0] * 7, [1.0] * 9, ["a"] * 7, [float("nan")] * 9, list(range(100))),
)


def damaged(rng: Random, data: bytes) -> bytes:
    """Return the bytes with one to eight changes, half of the time near the beginning or the end."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        size = len(mutable)
        near = rng.choice((size, min(size, 600)))
        at = rng.randrange(near) if near else 0
        at = size - 1 - at if near < size and rng.random() < 0.4 else at
        length = rng.choice((1, 2, 4, 8, 64, 4096))
        kind = rng.randrange(7)
        if kind == 0:
            mutable[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del mutable[at:]
        elif kind == 2:
            del mutable[at : at + length]
        elif kind == 3:
            mutable[at:at] = mutable[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            mutable[at:at] = rng.randbytes(min(length, 64))
        elif kind == 5:
            mutable[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 255, 2**16, *_LARGE[:2])))
        else:
            mutable[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**20, 2**33, *_LARGE)))
    return bytes(mutable)


def distorted(rng: Random, tree: Any) -> Any:
    """Return plain containers with one to four nodes replaced, left out, renamed, doubled or nested."""
    tree = json.loads(json.dumps(tree))
    nested = False
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return rng.choice(_HOSTILE)
        owner, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 2:
            owner[key] = rng.choice(_HOSTILE)
        elif kind == 3:
            del owner[key]
        elif kind == 4 and isinstance(owner, dict):
            owner[str(rng.choice(("", "x", key + "s", 3)))] = owner.pop(key)
        elif kind == 5:
            deep = rng.random() >= 0.7
            owner[key] = _nest(owner[key], 300) if deep and not nested else [owner[key]] * rng.choice((1, 2, 9))
            nested = nested or deep
    return tree


def _places(tree: Any) -> Any:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


def _as_yaml(tree: Any) -> str:
    """Write YAML; what is nested too deep for its writer is written as JSON, which is YAML too."""
    try:
        return str(yaml.safe_dump(tree))
    except RecursionError:
        return json.dumps(tree)


def _nest(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


# -- what is damaged ---------------------------------------------------------------------------------------------------


def tiny_policy() -> CogACTPolicy:
    """A CogACT of a few thousand weights: its files are damaged where it hurts."""
    config = PolicyConfig(
        name="tiny",
        vision=VisionConfig(
            dino=TowerConfig(8, 2, 2, 16, registers=1), siglip=TowerConfig(8, 2, 2, 16), image_size=28, patch_size=14
        ),
        projector_width=16,
        decoder=DecoderConfig(width=16, depth=2, heads=2, mlp_width=32, vocabulary=512),
        head=ActionHeadConfig(width=16, depth=1, heads=2, horizon=2),
        prompt=MICRO.prompt,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CogACT(config)
    return CogACTPolicy(model, micro_tokenizer(), micro_policy().statistics)


@cache
def originals(folder: Path) -> dict[str, Path]:
    """Write one good file of each kind; they are damaged as copies."""
    from bag_factory import write_bag

    folder.mkdir(parents=True, exist_ok=True)
    policy = tiny_policy()
    save_checkpoint(policy, folder / "one.safetensors")
    save_published(policy, folder / "published")
    recipe = folder / "tiny.yaml"
    recipe.write_text("quantization: {weight_bits: 4, activation_bits: 8}\n")
    compress_to_file(policy, load_recipe(recipe), [], folder / "packed.safetensors")
    write_bag(folder / "mcap", frames=2)
    _as_sqlite(folder / "mcap", folder / "sqlite")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for name in ("png", "jpg", "bmp", "webp", "gif", "tiff"):
        Picture.fromarray(pixels).save(folder / f"picture.{name}")
    cv2.imwrite(str(folder / "deep.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "float.tiff"), pixels.astype(np.float32) / 255)
    return {path.name: path for path in folder.iterdir()}


def _as_sqlite(source: Path, target: Path) -> None:
    from rosbags.rosbag2 import Reader, StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    with Reader(source) as reader, Writer(target, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        known = {c.id: writer.add_connection(c.topic, c.msgtype, typestore=store) for c in reader.connections}
        for connection, stamp, data in reader.messages():
            writer.write(known[connection.id], stamp, data)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _damage_file(rng: Random, path: Path) -> None:
    """Damage the bytes of a file; of a safetensors file also its header as JSON, with the right length before it."""
    data = path.read_bytes()
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        if rng.random() < 0.7:
            key = rng.choice(sorted(header["__metadata__"]))
            try:
                text = json.dumps(distorted(rng, json.loads(header["__metadata__"][key])))
            except ValueError:
                text = damaged(rng, header["__metadata__"][key].encode()).decode("latin-1")
            header["__metadata__"][key] = text
        else:
            header = distorted(rng, header)
        raw = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(distorted(rng, json.loads(data))))
    elif path.suffix == ".yaml" and rng.random() < 0.7:
        path.write_text(_as_yaml(distorted(rng, yaml.safe_load(data))))
    else:
        path.write_bytes(damaged(rng, data))


def _damaged_copy(rng: Random, source: Path, folder: Path) -> Path:
    """Copy a file or folder and damage one file of it. Returns the copy."""
    copy = _fresh(folder) / source.name
    if source.is_file():
        shutil.copy(source, copy)
        _damage_file(rng, copy)
    else:
        shutil.copytree(source, copy)
        _damage_file(rng, rng.choice(sorted(path for path in copy.rglob("*") if path.is_file())))
    return copy


# -- how it is read ----------------------------------------------------------------------------------------------------


def fuzz_bag(folder: Path, seed: int) -> None:
    rng = Random(f"bag {seed}")
    copy = _damaged_copy(rng, originals(folder / "good")[rng.choice(("mcap", "sqlite"))], folder / "bag")
    path = rng.choice((copy, *(p for p in copy.iterdir() if p.suffix in (".mcap", ".db3"))))
    with Bag(path) as bag:
        for number, _ in enumerate(BagObservations(bag, ReplaySpec(instruction="pick"))):
            if number > 4:
                break


def fuzz_image(folder: Path, seed: int) -> None:
    rng = Random(f"image {seed}")
    good = originals(folder / "good")
    name = rng.choice(sorted(name for name in good if name.startswith(("picture.", "deep.", "float."))))
    copy = _damaged_copy(rng, good[name], folder / "image")
    data = copy.read_bytes()
    height, width = rng.choice((0, 1, 12, 2**31)), rng.choice((0, 3, 16, 2**31))
    encoding = rng.choice((*SUPPORTED_ENCODINGS, "", "8UC3", "16UC1", "32FC1", "x"))
    step = rng.choice((0, 1, 48, 96, 2**31))
    message = Image(height=height, width=width, encoding=encoding, step=step, data=data[: rng.choice((0, 576, 10**6))])
    formats = ("jpeg", "png", "bgr8; jpeg compressed bgr8", "16UC1; compressedDepth png", "", "rgb8; png compressed")
    calls: list[Callable[[], Any]] = [
        lambda: read_picture(copy),
        lambda: to_rgb(message),
        lambda: compressed_to_rgb(CompressedImage(format=rng.choice(formats), data=data)),
    ]
    for call in calls:
        try:
            call()
        except REFUSALS:
            continue


def fuzz_camera_info(folder: Path, seed: int) -> None:
    rng = Random(f"camera_info {seed}")
    info: dict[str, Any] = {
        "width": 16,
        "height": 12,
        "distortion_model": rng.choice(("plumb_bob", "rational_polynomial", "equidistant", "")),
        "d": [0.01] * rng.choice((0, 4, 5, 8)),
        "k": [10.0, 0.0, 8.0, 0.0, 10.0, 6.0, 0.0, 0.0, 1.0],
        "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "p": [10.0, 0.0, 8.0, 0.0, 0.0, 10.0, 6.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "roi": {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0, "do_rectify": False},
    }
    path = _fresh(folder / "camera") / "camera.yaml"
    text = _as_yaml(distorted(rng, info))
    path.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.3 else text.encode())
    camera = CameraModel.from_camera_info(read_camera_info_message(path))
    camera.require_size(16, 12)
    project_tool(camera, np.eye(4), np.eye(4) + np.eye(4, k=3)[[2, 1, 0, 3]])


def fuzz_checkpoint(folder: Path, seed: int) -> None:
    rng = Random(f"checkpoint {seed}")
    name = rng.choice(("one.safetensors", "published"))
    copy = _damaged_copy(rng, originals(folder / "good")[name], folder / "checkpoint")
    describe(open_checkpoint(copy))
    _predict(load_checkpoint(copy))


def fuzz_recipe(folder: Path, seed: int) -> None:
    rng = Random(f"recipe {seed}")
    name = rng.choice(list_recipes())
    data = yaml.safe_load((share_path("config/recipes") / f"{name}.yaml").read_text())
    path = _fresh(folder / "recipe") / "mine.yaml"
    if rng.random() < 0.5:
        data = {"extends": name, **data} if "extends" not in data else data
    text = _as_yaml(distorted(rng, data))
    path.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.3 else text.encode())
    recipe = load_recipe(path)
    require_loadable(recipe, 6)
    assert recipe.digest


def fuzz_tokenizer(folder: Path, seed: int) -> None:
    rng = Random(f"tokenizer {seed}")
    name, data = micro_tokenizer().file
    path = _fresh(folder / "tokenizer") / rng.choice((name, name, "tokenizer.model"))
    path.write_bytes(data)
    _damage_file(rng, path)
    tokenize = PromptTokenizer.load(path, MICRO.prompt, MICRO.decoder.vocabulary)
    ids = tokenize("pick up the can é中</s>")
    assert all(0 <= token < MICRO.decoder.vocabulary for token in ids)


def fuzz_compressed(folder: Path, seed: int) -> None:
    rng = Random(f"compressed {seed}")
    copy = _damaged_copy(rng, originals(folder / "good")["packed.safetensors"], folder / "compressed")
    _predict(load_compressed(copy))


def _predict(policy: CogACTPolicy) -> None:
    # a file that damage made large but possible is not predicted with: that is slow and proves nothing
    sampling = dataclasses.replace(policy.diffusion, steps=min(policy.diffusion.steps, 10))
    if policy.diffusion.sampler == "ddim" and sampling.stride is not None:
        policy.diffusion = sampling
    policy.predict(Observation(np.zeros((20, 30, 3), np.uint8), 0, "pick up the can"))


TARGETS: dict[str, Callable[[Path, int], None]] = {
    "bag": fuzz_bag,
    "image": fuzz_image,
    "camera_info": fuzz_camera_info,
    "checkpoint": fuzz_checkpoint,
    "recipe": fuzz_recipe,
    "tokenizer": fuzz_tokenizer,
    "compressed": fuzz_compressed,
}
