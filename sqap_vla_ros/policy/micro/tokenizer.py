"""The micro policy's tokenizer: `python -m sqap_vla_ros.policy.micro.tokenizer` writes it beside this file.

A byte-level BPE of at most 512 ids trained on tabletop instructions: common words are one id, and any other text, in
any script, still has ids.
"""

from __future__ import annotations

import itertools
from importlib import resources

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sqap_vla_ros.policy.config import MICRO
from sqap_vla_ros.policy.prompt import PromptTokenizer

FILE = "micro_tokenizer.json"
_SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<empty>"]  # ids 0 … 4; "<empty>" plays the part of Llama's id 29871
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
_OBJECTS = ("block", "cube", "can", "cup", "ball", "bowl", "plate", "spoon", "carrot", "sponge", "apple", "button")
_FRAMES = (
    "pick up the {a} {x}",
    "put the {a} {x} on the {b} {y}",
    "place the {a} {x} in the {b} {y}",
    "move the {a} {x} near the {b} {y}",
    "push the {a} {x} to the left of the {b} {y}",
    "stack the {a} {x} on top of the {b} {y}",
    "open the top drawer and close the bottom drawer",
    "touch the {a} {x} with the gripper",
    "lift the {a} {x} to the right",
)


def build() -> Tokenizer:
    """Train the tokenizer; the same corpus always gives the same merges."""
    pairs = list(itertools.product(_COLOURS, _OBJECTS))
    sentences = [
        MICRO.prompt.template.format(instruction=frame.format(a=a, x=x, b=b, y=y)).rstrip()
        for frame in _FRAMES
        for (a, x), (b, y) in zip(pairs, reversed(pairs), strict=True)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MICRO.decoder.vocabulary,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def micro_tokenizer() -> PromptTokenizer:
    """Load the tokenizer that ships with the micro policy."""
    with resources.as_file(resources.files(__package__) / FILE) as path:
        return PromptTokenizer.load(path, MICRO.prompt, MICRO.decoder.vocabulary)


if __name__ == "__main__":
    with resources.as_file(resources.files(__package__) / FILE) as target:
        build().save(str(target))
