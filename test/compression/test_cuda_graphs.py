import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from backend_cases import allow_triton_on_the_cpu

from sqap_vla_ros.compression import cuda_graphs
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import compress
from sqap_vla_ros.compression.cuda_graphs import GRAPHS, CapturedPolicy, GraphedCall, with_graphs
from sqap_vla_ros.compression.load import equip, load_policy
from sqap_vla_ros.compression.recipe import load_recipe
from sqap_vla_ros.contracts import ACTION_DIM, CONTINUATIONS, Commitment, Observation
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


@pytest.mark.parametrize("selector", [None, "sqap", "coverage"])
def test_the_captured_function_is_the_prediction(selector):
    plain = micro_policy(selector=make_selector(selector) if selector else None)
    captured = CapturedPolicy(plain)
    away = Observation(OBSERVATIONS[0].image, 7, OBSERVATIONS[1].instruction)  # gripper out of view, other length
    for number, observation in enumerate([*OBSERVATIONS, away, *OBSERVATIONS]):
        seed = number % 3
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
    assert actual.timings_ms["total"] >= actual.timings_ms["graph"] > 0  # the last one was not the first of its length
    assert captured.info == plain.info


def test_only_policies_on_a_cuda_device_are_captured():
    plain = micro_policy()
    assert isinstance(with_graphs(plain, "cuda:0"), CapturedPolicy)
    assert with_graphs(plain, "cpu") is plain
    cached = equip(micro_policy(), load_recipe("vla_cache"))
    with pytest.warns(RuntimeWarning, match="without CUDA graphs.* VlaCachePolicy does not compute every prediction"):
        assert with_graphs(cached, "cuda") is cached


def test_load_policy_captures_what_it_can(monkeypatch):
    asked = []
    monkeypatch.setattr(cuda_graphs, "with_graphs", lambda policy, device: asked.append(device) or policy)
    load_policy("micro", "sqap_pruning")
    load_policy("micro", "rtn_w4a4")
    assert asked == ["cpu", "cpu"]


def predict_twice(policy):
    """The first prediction of a length makes the graph, the second would replay it."""
    return [policy.predict(OBSERVATIONS[0]) for _ in range(2)]


def test_a_graph_that_disagrees_is_not_used(monkeypatch):
    plain = micro_policy()
    captured = CapturedPolicy(plain)
    body = captured.body
    monkeypatch.setattr(captured, "body", lambda *arguments: tuple(part + 0.1 for part in body(*arguments)))
    with pytest.warns(RuntimeWarning, match=r"without CUDA graphs.* chunk differs from the eager one by 0\.1"):
        chunks = predict_twice(captured)
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.normalized, plain.predict(OBSERVATIONS[0]).normalized)
        assert "graph" not in chunk.timings_ms


def test_what_is_not_a_number_is_not_used(monkeypatch):
    captured = CapturedPolicy(micro_policy())
    body = captured.body
    monkeypatch.setattr(captured, "body", lambda *arguments: tuple(part * torch.nan for part in body(*arguments)))
    with pytest.warns(RuntimeWarning, match="differs from the eager one by nan"):
        predict_twice(captured)


def test_a_capture_that_fails_leaves_the_eager_policy(monkeypatch):
    captured = CapturedPolicy(micro_policy())

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "body", fail)
    with pytest.warns(RuntimeWarning, match="capturing it failed .operation not permitted"):
        chunks = predict_twice(captured)
    np.testing.assert_array_equal(chunks[0].normalized, chunks[1].normalized)
    captured.forget()
    monkeypatch.undo()
    assert "graph" in predict_twice(captured)[1].timings_ms


def test_another_selector_or_sampler_means_new_graphs():
    captured = CapturedPolicy(micro_policy())
    predict_twice(captured)
    for change in (
        lambda: setattr(captured, "selector", make_selector("sqap")),
        lambda: setattr(captured, "diffusion", DiffusionConfig(steps=5)),
    ):
        change()
        assert "graph" not in captured.predict(OBSERVATIONS[0]).timings_ms
        assert "graph" in captured.predict(OBSERVATIONS[0]).timings_ms
    assert len(captured.predict(OBSERVATIONS[0]).selection.indices) == 154


def test_a_batch_goes_the_ordinary_way():
    plain = micro_policy()
    for one, other in zip(
        plain.predict_batch(OBSERVATIONS), CapturedPolicy(plain).predict_batch(OBSERVATIONS), strict=True
    ):
        np.testing.assert_array_equal(one.normalized, other.normalized)


def test_one_graph_a_prompt_length_and_only_the_latest():
    policy = CapturedPolicy(micro_policy())
    made = []
    for words in (1, 2, 3, 2, 1, *range(4, 4 + GRAPHS)):
        policy.predict(Observation(OBSERVATIONS[0].image, 0, "pick " * words))
        made.append(list(policy._graphs))
    assert len(made[4]) == 3
    assert len(made[-1]) == GRAPHS
    assert made[4][-1] not in made[-1]
    policy.forget()
    assert not policy._graphs


@pytest.mark.parametrize(
    ("selector", "parameters", "reason"),
    [
        ("divprune", {}, "selector 'divprune' chooses its tokens on the host"),
        ("sqap", {"fill": "random"}, "selector 'sqap' chooses its tokens on the host"),
        ("visionzip", {}, "selector 'visionzip' chooses its tokens on the host"),
    ],
)
def test_what_cannot_be_captured_says_why_and_predicts_eagerly(selector, parameters, reason):
    plain = micro_policy(selector=make_selector(selector, **parameters))
    captured = CapturedPolicy(plain)
    assert captured.uncapturable() == reason
    with pytest.warns(RuntimeWarning) as warned:
        chunks = predict_twice(captured)
    assert [str(one.message) for one in warned] == [f"predicting without CUDA graphs, which is slower: {reason}"]
    for chunk in chunks:
        np.testing.assert_array_equal(chunk.normalized, plain.predict(OBSERVATIONS[0]).normalized)
        assert "graph" not in chunk.timings_ms


def test_ddpm_cannot_be_captured():
    policy = micro_policy()
    policy.diffusion = DiffusionConfig(sampler="ddpm", steps=100)
    assert CapturedPolicy(policy).uncapturable() == "sampler 'ddpm' draws noise between its steps"
    with pytest.warns(RuntimeWarning, match="without CUDA graphs.* sampler 'ddpm' draws noise"):
        loaded = with_graphs(policy, "cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.predict(OBSERVATIONS[0])  # was said


def test_a_chunk_that_continues_another_says_once_that_it_is_eager_and_keeps_the_graphs():
    captured = CapturedPolicy(micro_policy())
    still = np.zeros((captured.info.horizon, ACTION_DIM))
    continued = dataclasses.replace(OBSERVATIONS[0], commitment=Commitment(still, 1, CONTINUATIONS[1]))
    predict_twice(captured)
    with pytest.warns(RuntimeWarning) as warned:
        chunks = [captured.predict(continued) for _ in range(2)]
    assert [str(one.message) for one in warned] == [
        "predicting without CUDA graphs, which is slower: a chunk that continues another is sampled in steps of its own"
    ]
    assert not any("graph" in chunk.timings_ms for chunk in chunks)
    assert "graph" in captured.predict(OBSERVATIONS[0]).timings_ms


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("selector", [None, "sqap"])
def test_replay_on_a_gpu_is_the_prediction(selector):
    plain = micro_policy(selector=make_selector(selector) if selector else None)
    plain.model.cuda()
    captured = with_graphs(plain, "cuda")
    for observation in (*OBSERVATIONS, *OBSERVATIONS):
        expected, actual = plain.predict(observation), captured.predict(observation)
        np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-4)
        np.testing.assert_array_equal(actual.selection.indices, expected.selection.indices)
    assert "graph" in actual.timings_ms


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
    actual = CapturedPolicy(policy).predict(OBSERVATIONS[0], seed=3)
    np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-4)
    np.testing.assert_array_equal(actual.selection.indices, expected.selection.indices)
