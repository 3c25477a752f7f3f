"""The policy end to end at micro size: determinism, batches, selection inside the decoder."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_selector import Recorder

from sqap_vla_ros.contracts import Observation, SelectionContext, unreadable
from sqap_vla_ros.policy.actions import choose_dataset
from sqap_vla_ros.policy.cogact import CogACTPolicy
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.preprocessing import ImageTransform


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Large random patches: an image with something to attend to."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return coarse.repeat(-(-height // 8), axis=0).repeat(-(-width // 8), axis=1)[:height, :width].copy()


def observation(seed: int, instruction: str = "pick up the red block") -> Observation:
    return Observation(picture(seed), stamp_ns=seed, instruction=instruction, gripper_pixel=(80.0, 60.0))


@pytest.fixture(scope="module")
def policy() -> CogACTPolicy:
    return micro_policy(seed=0)


def test_chunk_fields(policy):
    chunk = policy.predict(observation(1), seed=5)
    assert chunk.stamp_ns == 1
    assert chunk.seed == 5
    assert chunk.dt_s == policy.info.dt_s
    assert chunk.deltas.shape == chunk.normalized.shape == (16, 7)
    assert np.abs(chunk.deltas[:, :3]).max() <= 0.02
    assert np.abs(chunk.deltas[:, 3:6]).max() <= 0.1
    assert set(np.unique(chunk.deltas[:, 6])) <= {0.0, 1.0}
    stages = ["preprocess", "vision", "projector", "decoder", "selection", "action_head"]
    assert list(chunk.timings_ms) == [*stages, "total"]
    assert sum(chunk.timings_ms[stage] for stage in stages) == pytest.approx(chunk.timings_ms["total"], abs=1.0)
    assert chunk.selection.method == "none"
    assert len(chunk.selection.indices) == 256
    assert chunk.selection.gripper_patch == (8, 8)


def test_same_seed_same_chunk_other_seed_other_chunk(policy):
    first = policy.predict(observation(1), seed=3)
    torch.rand(10)  # the global generator has no say
    np.testing.assert_array_equal(first.normalized, policy.predict(observation(1), seed=3).normalized)
    assert np.abs(first.normalized - policy.predict(observation(1), seed=4).normalized).max() > 1e-3


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    one, same, other = micro_policy(seed=1), micro_policy(seed=1), micro_policy(seed=2)
    torch.testing.assert_close(torch.rand(3), expected)
    again = same.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    assert not torch.equal(one.model.projector[0].weight, other.model.projector[0].weight)


def test_image_and_instruction_change_the_chunk(policy):
    base = policy.predict(observation(1)).normalized
    assert np.abs(base - policy.predict(observation(2)).normalized).max() > 1e-2
    assert np.abs(base - policy.predict(observation(1, "push the green can")).normalized).max() > 1e-2


@settings(max_examples=8, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["lift", "the red block", "naïve Ünï¢ode ☃", "a", "x" * 40]), min_size=1, max_size=3
    ),
    seeds=st.lists(st.integers(0, 2**31), min_size=3, max_size=3),
)
def test_a_batch_equals_its_singles(policy, words, seeds):
    pruned = CogACTPolicy(policy.model, policy.tokenize, policy.statistics, selector=Recorder())
    observations = [observation(seeds[0] % 97 + k, " ".join(words[: k + 1])) for k in range(3)]
    batch = pruned.predict_batch(observations, seeds=seeds)
    for seed, one, row in zip(seeds, observations, batch, strict=True):
        single = pruned.predict(one, seed=seed)
        np.testing.assert_array_equal(row.selection.indices, single.selection.indices)
        np.testing.assert_allclose(row.normalized, single.normalized, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(text=st.text(min_size=1, max_size=60).filter(lambda text: not unreadable(text)))
def test_any_text_is_a_prompt(policy, text):
    ids = policy.tokenize(text)
    assert ids[0] == 1
    assert ids[-2:] == [4, 2]
    assert ids.count(2) == 1
    assert max(ids) < 512


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_any_image_size(policy, height, width):
    chunk = policy.predict(Observation(np.full((height, width, 3), 127, np.uint8), 0, "lift"))
    assert np.isfinite(chunk.normalized).all()


@pytest.mark.parametrize("layer", [0, 1, 3, 5])
def test_dropping_equals_masking(policy, layer):
    """Tokens dropped before a layer act as keys masked from that layer on, at the original positions."""
    model, selector = policy.model, Recorder(prune_layer=layer, needs=frozenset({"attention"} if layer else ()))
    image, ids, lengths = policy._inputs([observation(4), observation(5, "put the blue can on the plate")])
    context = SelectionContext(grid=(16, 16), gripper_patch=[None, None])
    with torch.inference_mode():
        visual = model.projector(model.vision(image)[0])
        output = model.decode(visual, ids, lengths, selector=selector, context=context)
        for row in range(2):
            length = int(lengths[row])
            expected = masked_reference(model, visual[row], ids[row, :length], output.selected.indices[row], layer)
            torch.testing.assert_close(output.cognition[row], expected, atol=2e-5, rtol=1e-4)


def masked_reference(model, visual, ids, kept, layer):
    """The textbook way for one row: whole sequence, additive mask, eager softmax."""
    decoder = model.decoder
    text = decoder.embed_tokens(ids)
    hidden = torch.cat((text[:1], visual, text[1:]))[None]
    length = hidden.shape[1]
    causal = torch.full((length, length), float("-inf")).triu(1)
    dropped = torch.ones(length, dtype=torch.bool)
    dropped[0] = dropped[257:] = False
    dropped[1 + kept] = False
    pruned = causal.masked_fill(dropped[None, :], float("-inf"))
    pruned[dropped, :] = 0.0  # rows nobody reads
    cos, sin = decoder.rotary(length, hidden)
    for index, block in enumerate(decoder.layers):
        x = block.input_layernorm(hidden)
        q, k, v = (
            linear(x).view(1, length, 4, 32).transpose(1, 2)
            for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        )
        q, k = (t * cos + torch.cat((-t[..., 16:], t[..., :16]), -1) * sin for t in (q, k))
        weights = (q @ k.transpose(-1, -2) / 32**0.5 + (pruned if index >= layer else causal)).softmax(-1)
        hidden = hidden + block.self_attn.o_proj((weights @ v).transpose(1, 2).reshape(1, length, 128))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return decoder.norm(hidden)[0, -1]


def test_info_tells_the_crop(policy):
    cropped = CogACTPolicy(policy.model, policy.tokenize, policy.statistics, crop="deployment")
    assert ImageTransform.of(cropped.info) == cropped.transform
    assert ImageTransform.of(policy.info) == policy.transform == ImageTransform()


def test_gripper_outside_the_picture_has_no_patch(policy):
    outside = dataclasses.replace(observation(1), gripper_pixel=(500.0, 20.0))
    assert policy.predict(outside).selection.gripper_patch is None


def test_saliency_is_dinos_cls_attention(policy):
    selector = Recorder(prune_layer=0, needs=frozenset({"saliency", "hidden"}))
    policy.selector = selector
    try:
        policy.predict(observation(3))
    finally:
        policy.selector = None
    context = selector.seen[0]
    assert context.saliency.shape == (1, 256)
    assert context.hidden.shape == (1, 256, 128)
    assert 0 < float(context.saliency.sum()) < 1  # CLS and registers take the rest
    assert context.attention is None


def test_merged_tokens_replace_the_kept_ones(policy):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Merging(Recorder):
        gain: float = 1.0

        def select(self, context):
            kept = super().select(context)
            tokens = context.hidden.gather(1, kept.indices[..., None].expand(-1, -1, context.hidden.shape[-1]))
            return dataclasses.replace(kept, merged=self.gain * tokens)

    chunks = []
    try:
        for gain in (None, 1.0, 0.5):
            needs = frozenset({"attention", "hidden"})
            policy.selector = Recorder() if gain is None else Merging(needs=needs, gain=gain)
            chunks.append(policy.predict(observation(6)).normalized)
    finally:
        policy.selector = None
    np.testing.assert_array_equal(chunks[0], chunks[1])
    assert np.abs(chunks[1] - chunks[2]).max() > 1e-4


def test_selector_beyond_the_decoder_is_refused(policy):
    with pytest.raises(ValueError, match="before decoder layer 6; this model has layers 0 to 5"):
        policy.selector = Recorder(prune_layer=6)


def test_bad_requests(policy):
    with pytest.raises(ValueError, match="instruction is empty"):
        policy.predict(observation(1, "  \n"))
    with pytest.raises(ValueError, match=r"too long: .* at most 2048"):
        policy.predict(observation(1, "lift " * 5000))
    with pytest.raises(ValueError, match="2 seeds, one an observation, got 1"):
        policy.predict_batch([observation(1), observation(2)], seeds=[1])
    with pytest.raises(ValueError, match="at least one observation"):
        policy.predict_batch([])


def test_non_finite_weights_reach_the_chunk_as_nan():
    """A safety check further down must see the trouble: nothing may turn it into a plausible action."""
    policy = micro_policy()
    with torch.no_grad():
        policy.model.action_head.final_layer.linear.bias[:] = float("nan")
    assert np.isnan(policy.predict(observation(1)).deltas).all()


def test_choose_dataset_names_the_choices(policy):
    only = policy.statistics["micro"]
    assert choose_dataset({"a": only}, None) == "a"
    with pytest.raises(ValueError, match="statistics for a, b; no unnorm_key was given"):
        choose_dataset({"a": only, "b": only}, None)
    with pytest.raises(ValueError, match="unnorm_key 'c' is not among them"):
        choose_dataset({"a": only, "b": only}, "c")
