"""A packed pass over K instructions is K ordinary passes."""

import dataclasses

import pytest
import torch
from recording_selector import Recorder

from sqap_vla_ros.contracts import SelectionContext
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import TABLETOP
from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.training.packed import SUPERVISED_LAYER, PackedPrompts, common_prefix, packed_forward
from sqap_vla_ros.training.train import new_model

INSTRUCTIONS = (
    ("open the drawer", "move the purple bar near the yellow can", "pick up the red cube"),
    ("close the drawer", "put the green bar in the bowl", "pick up the blue can"),
)


@pytest.fixture(scope="module")
def model() -> CogACT:
    return new_model(seed=3).eval()


@pytest.fixture(scope="module")
def packed() -> tuple[torch.Tensor, PackedPrompts, list[list[list[int]]]]:
    tokenize = micro_tokenizer()
    prompts = [[tokenize(words) for words in row] for row in INSTRUCTIONS]
    prefix = common_prefix([ids for row in prompts for ids in row])
    own = [[ids[len(prefix) :] for ids in row] for row in prompts]
    longest = max(len(ids) for row in own for ids in row) + 2
    padded = torch.tensor([[ids + [3] * (longest - len(ids)) for ids in row] for row in own])
    lengths = torch.tensor([[len(ids) for ids in row] for row in own])
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, 224, 224), generator=generator, dtype=torch.uint8)
    return image, PackedPrompts(torch.tensor(prefix), padded, lengths), prompts


def test_each_instruction_gets_the_cognition_feature_of_its_own_prediction(model, packed):
    image, prompts, ids = packed
    with torch.no_grad():
        out = packed_forward(model, image, prompts)
        for row in range(2):
            for column in range(3):
                visual = model.projector(model.vision(image[row : row + 1])[0])
                alone = model.decode(visual, torch.tensor([ids[row][column]]), None).cognition[0]
                assert torch.allclose(out.cognition[row, column], alone, atol=2e-4, rtol=1e-3)
        assert not torch.allclose(out.cognition[0, 0], out.cognition[0, 2], atol=1e-2)


def test_supervised_attention_is_the_layers_own(model, packed):
    image, prompts, ids = packed
    recorder = Recorder(prune_layer=SUPERVISED_LAYER + 1)
    with torch.no_grad():
        out = packed_forward(model, image, prompts)
        context = SelectionContext(grid=(16, 16), gripper_patch=[None])
        visual = model.projector(model.vision(image[1:2])[0])
        model.decode(visual, torch.tensor([ids[1][2]]), None, selector=recorder, context=context)
    assert torch.allclose(out.attention[1, :, 2].exp().mean(dim=0), recorder.seen[0].attention[0], atol=1e-5)


def test_a_decoder_without_a_layer_to_supervise_is_refused(packed):
    image, prompts, _ = packed
    shallow = CogACT(TABLETOP.replace(decoder=dataclasses.replace(TABLETOP.decoder, depth=2)))
    with pytest.raises(ValueError, match="at least 3 layers, got 2"):
        packed_forward(shallow, image, prompts)


def test_common_prefix():
    assert common_prefix([[1, 2, 3, 4], [1, 2, 4], [1, 2, 3]]) == [1, 2]
    assert common_prefix([[5], [6]]) == []
