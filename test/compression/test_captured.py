import copy

import numpy as np
import pytest
import torch
from backend_rows import allow_triton_on_the_cpu

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.captured import GRAPHS, CapturedPolicy, GraphedCall
from sqap_vla_ros.compression.compress import compress
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.quantization.backends import compiled, product
from sqap_vla_ros.quantization.layer_fusion import fuse_layer, prepare_inference

OBSERVATIONS = synthetic_observations(3)


def test_a_call_reads_and_writes_fixed_buffers():
    seen = []
    call = GraphedCall(
        lambda a, b: (seen.append((a.data_ptr(), b.data_ptr())), (a + b,))[1], (torch.ones(2), torch.ones(2))
    )
    assert call(torch.full((2,), 3.0), torch.ones(2))[0].tolist() == [4.0, 4.0]
    argument = torch.full((2,), 5.0)
    assert call(argument, torch.ones(2))[0].tolist() == [6.0, 6.0]
    assert seen[0] == seen[1]
    assert argument.data_ptr() not in seen[1]
    with pytest.raises(ValueError, match=r"captured for \(2,\) of torch.float32, got \(3,\)"):
        call(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(2,\) of torch.float64"):
        call(torch.ones(2).double(), torch.ones(2))


@pytest.mark.parametrize("selector", [None, "sqap"])
def test_the_captured_function_is_the_prediction(selector):
    plain = micro_policy(selector=make_selector(selector) if selector else None)
    captured = CapturedPolicy.of(plain)
    away = Observation(OBSERVATIONS[0].image, 7, OBSERVATIONS[1].instruction)  # gripper out of view, other length
    for seed, observation in enumerate([*OBSERVATIONS, away, OBSERVATIONS[0]]):
        expected, actual = plain.predict(observation, seed=seed), captured.predict(observation, seed=seed)
        np.testing.assert_array_equal(actual.normalized, expected.normalized)
        np.testing.assert_array_equal(actual.deltas, expected.deltas)
        np.testing.assert_array_equal(actual.selection.indices, expected.selection.indices)
        np.testing.assert_array_equal(actual.selection.reasons, expected.selection.reasons)
        assert (actual.stamp_ns, actual.seed, actual.selection.method) == (
            expected.stamp_ns,
            seed,
            expected.selection.method,
        )
        assert actual.timings_ms["total"] >= actual.timings_ms["graph"] > 0
    assert captured.info == plain.info


def test_a_batch_goes_the_ordinary_way():
    plain = micro_policy()
    for one, other in zip(
        plain.predict_batch(OBSERVATIONS), CapturedPolicy.of(plain).predict_batch(OBSERVATIONS), strict=True
    ):
        np.testing.assert_array_equal(one.normalized, other.normalized)


def test_one_graph_a_prompt_length_and_only_the_latest():
    policy = CapturedPolicy.of(micro_policy())
    made = []
    for words in (1, 2, 3, 2, 1, *range(4, 4 + GRAPHS)):
        policy.predict(Observation(OBSERVATIONS[0].image, 0, "pick " * words))
        made.append(list(policy._graphs()))
    assert len(made[4]) == 3
    assert len(made[-1]) == GRAPHS
    assert made[4][-1] not in made[-1]
    policy.forget()
    assert not policy._graphs()


@pytest.mark.parametrize(
    ("selector", "parameters", "reason"),
    [
        ("divprune", {}, "selector 'divprune' chooses its tokens on the host"),
        ("sqap", {"fill": "random"}, "selector 'sqap' chooses its tokens on the host"),
        ("visionzip", {}, "selector 'visionzip' chooses its tokens on the host"),
    ],
)
def test_what_cannot_be_captured_says_why(selector, parameters, reason):
    policy = CapturedPolicy.of(micro_policy(selector=make_selector(selector, **parameters)))
    with pytest.raises(ValueError, match=f"cannot be captured as a graph: {reason}; use it without"):
        policy.predict(OBSERVATIONS[0])


def test_ddpm_cannot_be_captured():
    policy = micro_policy()
    policy.diffusion = DiffusionConfig(sampler="ddpm", steps=100)
    captured = CapturedPolicy.of(policy)
    with pytest.raises(ValueError, match="sampler 'ddpm' draws noise between its steps"):
        captured.predict(OBSERVATIONS[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("selector", [None, "sqap"])
def test_replay_on_a_gpu_is_the_prediction(selector):
    plain = micro_policy(selector=make_selector(selector) if selector else None)
    plain.model.cuda()
    captured = CapturedPolicy.of(plain)
    for observation in (*OBSERVATIONS, OBSERVATIONS[0]):
        expected, actual = plain.predict(observation), captured.predict(observation)
        np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-4)
        np.testing.assert_array_equal(actual.selection.indices, expected.selection.indices)


def test_the_captured_function_on_triton_kernels_is_the_prediction(monkeypatch):
    """The whole W4A4 policy: quantisers with norms, products, gate and up, online rotations, token selection."""
    allow_triton_on_the_cpu(monkeypatch)
    monkeypatch.setattr(product, "gated", compiled._gated)  # the formula without its compilation
    reference = micro_policy(selector=make_selector("sqap"))
    reference.model.decoder.layers = reference.model.decoder.layers[:4]
    compress(reference, load_recipe("w4a4_rotated"), [])
    policy = copy.deepcopy(reference)
    assert prepare_inference(policy.model, "triton").name == "triton"
    for layer in reference.model.decoder.layers:
        fuse_layer(layer)
    expected = reference.predict(OBSERVATIONS[0], seed=3)
    actual = CapturedPolicy.of(policy).predict(OBSERVATIONS[0], seed=3)
    np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-4)
    np.testing.assert_array_equal(actual.selection.indices, expected.selection.indices)
