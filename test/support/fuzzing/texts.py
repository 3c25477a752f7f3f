"""Files that people write by hand, and tokenizers: damaged, distorted, and whole ones of hostile YAML or XML."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
from fuzzing.mutation import as_yaml, damage_file, damaged, distorted, fresh

from sqap_vla_ros.compression.compress import require_loadable
from sqap_vla_ros.compression.recipe import list_recipes, load_recipe
from sqap_vla_ros.nodes.bags.spec import read_camera_info_message, read_segments
from sqap_vla_ros.nodes.launch.robots import read_robot
from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.policy.prompt import PromptTokenizer
from sqap_vla_ros.resources import share_path
from sqap_vla_ros.robot.camera import CameraModel, project_tool
from sqap_vla_ros.robot.kinematics import ArmKinematics

_CAMERA: dict[str, Any] = {
    "width": 16,
    "height": 12,
    "distortion_model": "plumb_bob",
    "d": [],
    "k": [10.0, 0.0, 8.0, 0.0, 10.0, 6.0, 0.0, 0.0, 1.0],
    "r": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
    "p": [10.0, 0.0, 8.0, 0.0, 0.0, 10.0, 6.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "roi": {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0, "do_rectify": False},
}


def fuzz_camera_info(folder: Path, seed: int) -> None:
    """Distort a calibration file and project a point with it."""
    rng = Random(f"camera_info {seed}")
    info: dict[str, Any] = {
        **_CAMERA,
        "distortion_model": rng.choice(("plumb_bob", "rational_polynomial", "equidistant", "")),
        "d": [0.01] * rng.choice((0, 4, 5, 8)),
    }
    path = fresh(folder / "camera") / "camera.yaml"
    text = as_yaml(distorted(rng, info))
    path.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.3 else text.encode())
    _read_camera(path)


def fuzz_recipe(folder: Path, seed: int) -> None:
    """Distort a recipe that ships."""
    rng = Random(f"recipe {seed}")
    name = rng.choice(list_recipes())
    data = yaml.safe_load((share_path("config/recipes") / f"{name}.yaml").read_text())
    path = fresh(folder / "recipe") / "mine.yaml"
    if rng.random() < 0.5:
        data = {"extends": name, **data} if "extends" not in data else data
    text = as_yaml(distorted(rng, data))
    path.write_bytes(damaged(rng, text.encode()) if rng.random() < 0.3 else text.encode())
    _read_recipe(path)


def fuzz_tokenizer(folder: Path, seed: int) -> None:
    """Damage or distort a tokenizer.json."""
    rng = Random(f"tokenizer {seed}")
    name, data = micro_tokenizer().file
    path = fresh(folder / "tokenizer") / rng.choice((name, name, "tokenizer.model"))
    path.write_bytes(data)
    damage_file(rng, path)
    _tokenize(path, MICRO.decoder.vocabulary)


def fuzz_sentencepiece(folder: Path, seed: int) -> None:
    """Damage a tokenizer.model."""
    rng = Random(f"sentencepiece {seed}")
    path = fresh(folder / "sentencepiece") / "tokenizer.model"
    path.write_bytes(damaged(rng, _sentencepiece()))
    _tokenize(path, 300)


def fuzz_yaml(folder: Path, seed: int) -> None:
    """Put YAML that is right but hostile into each kind of file that people write."""
    rng = Random(f"yaml {seed}")
    kind = rng.choice(tuple(_WRITTEN))
    tree, read = _WRITTEN[kind]
    path = fresh(folder / "yaml") / f"{kind}.yaml"
    lines = as_yaml(tree()).splitlines()
    value = rng.choice(_YAML)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        before, colon, _ = lines[at].partition(":")
        dash = lines[at].lstrip().startswith("- ")
        if rng.random() < 0.2:
            lines.insert(at, value)
        elif colon:
            lines[at] = f"{before}: {value}"
        elif dash:
            lines[at] = f"{lines[at].partition('- ')[0]}- {value}"
    text = value if rng.random() < 0.1 else "\n".join(_TOP + lines if rng.random() < 0.5 else lines)
    path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), "replace"))
    read(path)


def fuzz_urdf(folder: Path, seed: int) -> None:
    """Change elements and attributes of an arm's URDF, or its text."""
    rng = Random(f"urdf {seed}")
    root = ElementTree.fromstring(_ARM)
    for _ in range(rng.choice((1, 1, 2, 4))):
        parent = rng.choice([element for element in root.iter() if len(element)] or [root])
        if not len(parent):
            break
        child = rng.choice(list(parent))
        what = rng.randrange(6)
        if what <= 2 and child.attrib:
            child.set(rng.choice(sorted(child.attrib)), rng.choice(_WORDS))
        elif what == 3:
            parent.remove(child)
        elif what == 4:
            parent.append(child)
        else:
            child.tag = rng.choice(("link", "joint", "mimic", "limit", "inertial", "geometry", "x"))
    text = ElementTree.tostring(root, "unicode")
    if rng.random() < 0.2:
        text = damaged(rng, text.encode()).decode("utf-8", "replace")
    if rng.random() < 0.1:
        text = rng.choice(_DECLARATIONS) + text.replace("0.1", "&z;")
    arm = ArmKinematics.from_urdf(text, "base", "tool")
    arm.forward(np.zeros(len(arm.joint_names)))


def _read_camera(path: Path) -> None:
    camera = CameraModel.from_camera_info(read_camera_info_message(path))
    camera.require_size(16, 12)
    project_tool(camera, np.eye(4), np.eye(4) + np.eye(4, k=3)[[2, 1, 0, 3]])


def _read_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    require_loadable(recipe, 6)
    assert recipe.digest


def _tokenize(path: Path, vocabulary: int) -> None:
    ids = PromptTokenizer.load(path, MICRO.prompt, vocabulary)("pick up the can é中</s>")
    assert all(0 <= token < vocabulary for token in ids)


@cache
def _sentencepiece() -> bytes:
    import sentencepiece

    model = io.BytesIO()
    words = [
        f"pick up the {word} and put it on the plate number {number}" for word in "can cup pot" for number in range(40)
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


_NINES = "9" * 5000
_BOMB = (
    "[&a [0,0,0,0,0,0,0,0,0], "
    + ", ".join(f"&{chr(98 + n)} [{', '.join(f'*{chr(97 + n)}' for _ in range(9))}]" for n in range(12))
    + "]"
)
_TOP = ["x-shared: &s {a: &loop [1, *loop]}"]
_YAML = (
    *("!!bool maybe", "!!timestamp x", "!!int ''", "!!int '_'", "!!float ''", "!!float x", "!!null x", "!!set {a, b}"),
    *("!!binary '!'", "!!omap [a: 1, a: 2]", "!!pairs [a: 1]", "!!python/object/apply:os.system ['true']", "!!str {}"),
    *("2001-99-99", "2001-01-01", "2001-01-01 25:61:61", "190:20:30", "190:20:30.15", "0o17", "0x", "0b", "1e400"),
    *(_NINES, f"0x{'f' * 5000}", f"1.{_NINES}", "~", "yes", "=", "<<", "<<: 3", "{<<: [1]}", "{<<: *s}", "*s", "*loop"),
    *("&r [*r]", "&r {r: *r}", "&r {a: [*r, *r]}", "*nothing", "&a", "!x y", "{? {} : 1}"),
    *("!<tag:yaml.org,2002:int> 3", "{? [1, 2] : 3}", "? x", "--- 3", "...", "%YAML 3.0", "|\n  x", ">\n x", "@x"),
    *("`x", "\t", "'", '"\\ud800"', "\x00"),
    *("[" * 500, "{a: " * 500, "[" * 400 + "]" * 400, _BOMB, "{" + ", ".join(f"k{n}: 0" for n in range(3000)) + "}"),
    *("[0, 0, 0, 0, 0, 0, 0, 0, 0x7fffffffffffffffff]", "-0", "+.inf", "-.INF", ".NaN", "1_0", "[, ]", "{a, a: 1}"),
)  # fmt: skip
_WRITTEN: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    "camera": (lambda: _CAMERA, _read_camera),
    "recipe": (lambda: yaml.safe_load((share_path("config/recipes") / "sqap.yaml").read_text()), _read_recipe),
    "segments": (
        lambda: [{"from_s": 0.0, "instruction": "pick"}, {"from_s": 2.5, "instruction": "put"}],
        read_segments,
    ),
    "robot": (lambda: {"/**": {"ros__parameters": {"tool_frame": "tool0", "rate": 5.0}}}, lambda p: read_robot(str(p))),
}

_WORDS = (
    *("", " ", "0", "-1", "nan", "inf", "-inf", "1e400", "1e308", "0 0", "0 0 0", "0 0 0 0", "nan 0 0", "0,0,0", "x"),
    *("base", "tool", "a", "b", "revolute", "continuous", "prismatic", "fixed", "floating"),
    *("planar", "ball", "é", "a" * 999),
    *("0x10", "1_0", "true", "&#0;", "../x", "package://x/y.stl", "1 0 0 1", "1e-320 0 0", "0 0 1e200"),
)  # fmt: skip
_DECLARATIONS = (
    '<!DOCTYPE r [<!ENTITY z "0.1">]>',
    '<!DOCTYPE r [<!ENTITY a "0000000000"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY z "&b;&b;&b;&b;&b;&b;">]>',
    '<!DOCTYPE r [<!ENTITY z SYSTEM "file:///etc/hostname">]>',
    '<?xml version="1.0" encoding="utf-16"?>',
)
_ARM = """<robot name="r"><link name="base"/><link name="a"><inertial><mass value="1"/><origin xyz="0 0 0.1"/>
<inertia ixx="1" ixy="0" ixz="0" iyy="1" iyz="0" izz="1"/></inertial><visual><geometry><box size="1 1 1"/></geometry>
</visual></link><link name="b"/><link name="tool"/>
<joint name="j1" type="revolute"><parent link="base"/><child link="a"/><origin xyz="0 0 0.1" rpy="0 0 0"/>
<axis xyz="0 0 1"/><limit lower="-1" upper="1" velocity="1" effort="1"/></joint>
<joint name="j2" type="prismatic"><parent link="a"/><child link="b"/><origin xyz="0.1 0 0"/><axis xyz="1 0 0"/>
<limit lower="0" upper="1" velocity="1" effort="1"/><safety_controller k_velocity="1" soft_lower_limit="0.1"/></joint>
<joint name="j3" type="continuous"><parent link="b"/><child link="tool"/><axis xyz="0 1 0"/>
<limit velocity="1" effort="1"/><dynamics damping="0.1" friction="0.1"/></joint></robot>"""
