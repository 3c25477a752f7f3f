"""Selectors inside the decoder's forward pass, against transformers' own eager attention."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from recording_selector import Recorder
from transformers import LlamaConfig, LlamaModel

from sqap_vla_ros.compression.load import equip
from sqap_vla_ros.compression.recipe import PruningSpec, Recipe
from sqap_vla_ros.contracts import Observation, Reason, SelectedTokens, SelectionContext
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import SELECTORS, make_selector
from sqap_vla_ros.pruning.base import Selector, keep_same

TEXT = 21


@pytest.fixture(scope="module")
def decoder():
    return micro_policy(seed=3).model.decoder.eval()


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(1, 256 + TEXT, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def eager(decoder, embeddings):
    """Attention maps of transformers' own model with the same weights: a list of [1, heads, S, S]."""
    config = decoder.config
    model = LlamaModel(
        LlamaConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=config.mlp_width,
            vocab_size=config.vocabulary,
            rms_norm_eps=config.rms_eps,
            attn_implementation="eager",
        )
    ).eval()
    model.load_state_dict(decoder.state_dict())
    with torch.inference_mode():
        return model(inputs_embeds=embeddings, output_attentions=True, use_cache=False).attentions


@pytest.mark.parametrize("layer", [1, 2, 3, 5])
@pytest.mark.parametrize("query", ["cognition", "instruction"])
def test_attention_row_is_the_eager_one(decoder, embeddings, eager, layer, query):
    recorder = Recorder(prune_layer=layer, query=query)
    with torch.inference_mode():
        decoder(embeddings, selector=recorder, context=SelectionContext((16, 16), [(4, 4)]))
    rows = eager[layer - 1][0].mean(dim=0)[-1:] if query == "cognition" else eager[layer - 1][0].mean(dim=0)[257:]
    torch.testing.assert_close(recorder.seen[0].attention[0], rows[:, 1:257].mean(dim=0), atol=1e-6, rtol=1e-4)


def test_fastv_keeps_what_the_eager_implementation_keeps(decoder, embeddings, eager):
    with torch.inference_mode():
        output = decoder(embeddings, selector=make_selector("fastv"), context=SelectionContext((16, 16), [None]))
    # as FastV's code: attention of the layer before, mean over heads, last row, image columns, top of it
    scores = eager[1].mean(dim=1)[0][-1][1:257]
    assert output.selected.indices[0].tolist() == sorted(scores.topk(56).indices.tolist())


@pytest.mark.parametrize("name", ["sqap", "fastv", "random_drop", "uniform_grid", "divprune", "fastervlm", "visionzip"])
def test_prediction_reports_the_selection_and_is_repeatable(name):
    policy = micro_policy(seed=0, selector=make_selector(name))
    image = np.random.default_rng(2).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    observation = Observation(image, 0, "pick up the red block", gripper_pixel=(33.0, 20.0))
    chunk, again = policy.predict(observation, seed=4), policy.predict(observation, seed=4)
    assert chunk.selection.method == name
    assert len(chunk.selection.indices) == policy.selector.budget(256)
    assert chunk.selection.gripper_patch == (6, 8)
    np.testing.assert_array_equal(chunk.selection.indices, again.selection.indices)
    np.testing.assert_array_equal(chunk.deltas, again.deltas)
    assert np.isfinite(chunk.deltas).all()


@dataclass(frozen=True, kw_only=True)
class LeftHalf(Selector):
    """Keeps the left half of the image: all that a new selector has to say."""

    name: str = "left_half"
    ratio: float = 0.5
    episodes: list[str] = field(default_factory=list)

    def select(self, context: SelectionContext) -> SelectedTokens:
        rows, cols = context.grid
        index = np.arange(rows * cols).reshape(rows, cols)
        return keep_same(index[:, : cols // 2].ravel(), Reason.GRID, context)

    def reset(self) -> None:
        self.episodes.append("new")


def test_a_new_selector_is_one_class_and_one_row(monkeypatch):
    monkeypatch.setitem(SELECTORS, "left_half", LeftHalf)
    policy = equip(micro_policy(seed=0), Recipe("mine", pruning=PruningSpec("left_half", {"prune_layer": 2})))
    selection = policy.predict(Observation(np.zeros((48, 64, 3), np.uint8), 0, "pick up the red block")).selection
    assert (selection.method, selection.prune_layer) == ("left_half", 2)
    assert selection.indices.tolist() == [row * 16 + col for row in range(16) for col in range(8)]
    assert not policy.info.stateful
    policy.reset()
    assert policy.selector.episodes == ["new"]
    with pytest.raises(NotImplementedError, match="'left_half' chooses its tokens on the host"):
        policy.selector.select_on_device(SelectionContext((16, 16), [None]))


def test_a_selector_that_remembers_frames_makes_the_policy_stateful():
    class Remembering(LeftHalf):
        stateful = True

    assert micro_policy(selector=Remembering()).info.stateful


def test_random_choices_are_declared():
    drawing = {name for name in SELECTORS if make_selector(name).draws_at_random}
    assert drawing == {"random_drop", "random_same_budget"}
    assert make_selector("sqap", fill="random").draws_at_random
