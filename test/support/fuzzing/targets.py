"""Damaged and hostile files of every kind that users name, each made from a seed, and the functions that read them.

A case is `TARGETS[name](folder, seed)`: it writes a file and reads it. Reading may succeed or raise one of REFUSALS,
which every command turns into one sentence. Anything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzzing.checkpoints import fuzz_checkpoint, fuzz_compressed, fuzz_mixed, fuzz_pickle, fuzz_tensors
from fuzzing.clients import fuzz_answers, fuzz_frames, fuzz_posts
from fuzzing.datasets import fuzz_lerobot
from fuzzing.mutation import REFUSALS
from fuzzing.pictures import fuzz_headers, fuzz_image
from fuzzing.recordings import fuzz_bag, fuzz_messages, fuzz_ros1
from fuzzing.robots import fuzz_clicks, fuzz_robot_file
from fuzzing.texts import (
    fuzz_camera_info,
    fuzz_recipe,
    fuzz_sentencepiece,
    fuzz_tokenizer,
    fuzz_urdf,
    fuzz_yaml,
)
from fuzzing.unfinished import fuzz_partial, fuzz_replayed, fuzz_study

__all__ = ["REFUSALS", "TARGETS"]

TARGETS: dict[str, Callable[[Path, int], None]] = {
    "bag": fuzz_bag,
    "ros1": fuzz_ros1,
    "messages": fuzz_messages,
    "image": fuzz_image,
    "headers": fuzz_headers,
    "camera_info": fuzz_camera_info,
    "checkpoint": fuzz_checkpoint,
    "pickle": fuzz_pickle,
    "tensors": fuzz_tensors,
    "compressed": fuzz_compressed,
    "recipe": fuzz_recipe,
    "tokenizer": fuzz_tokenizer,
    "sentencepiece": fuzz_sentencepiece,
    "yaml": fuzz_yaml,
    "urdf": fuzz_urdf,
    "lerobot": fuzz_lerobot,
    "mixed": fuzz_mixed,
    "partial": fuzz_partial,
    "study": fuzz_study,
    "replayed": fuzz_replayed,
    "robot_file": fuzz_robot_file,
    "clicks": fuzz_clicks,
    "frames": fuzz_frames,
    "posts": fuzz_posts,
    "answers": fuzz_answers,
}
