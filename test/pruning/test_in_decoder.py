"""Selectors inside the decoder's forward pass, against transformers' own eager attention."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from sqap_vla_ros.contracts import Observation, SelectedTokens, SelectionContext
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector

TEXT = 21


class Recorder:
    """A selector that lets another choose and remembers what it was shown."""

    def __init__(self, inner):
        self.inner, self.context = inner, None
        self.name, self.prune_layer, self.needs = inner.name, inner.prune_layer, inner.needs
        self.query = inner.query

    def budget(self, tokens):
        return self.inner.budget(tokens)

    def select(self, context) -> SelectedTokens:
        self.context = context
        return self.inner.select(context)


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
    recorder = Recorder(make_selector("sqap", prune_layer=layer, query=query))
    with torch.inference_mode():
        decoder(embeddings, selector=recorder, context=SelectionContext((16, 16), [(4, 4)]))
    rows = eager[layer - 1][0].mean(dim=0)[-1:] if query == "cognition" else eager[layer - 1][0].mean(dim=0)[257:]
    torch.testing.assert_close(recorder.context.attention[0], rows[:, 1:257].mean(dim=0), atol=1e-6, rtol=1e-4)


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
