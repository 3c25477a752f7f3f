"""The diffusion transformer against the public code's outputs (golden values) and its own algebra."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sqap_vla_ros.policy.action_head import DiffusionTransformer
from sqap_vla_ros.policy.config import HEAD_SIZES, MICRO, DiffusionConfig
from sqap_vla_ros.policy.sampling.diffusion import Sampler

# made by benchmarks/policy_parity.py with the public code; weights and inputs come from the seeds in it
GOLDEN = json.loads((Path(__file__).parent / "golden_action_head.json").read_text())


@pytest.fixture(scope="module")
def head() -> DiffusionTransformer:
    head = DiffusionTransformer(HEAD_SIZES[GOLDEN["size"]], features=4096).eval()
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(head.named_parameters())):
            rng = np.random.default_rng([GOLDEN["seeds"]["weights"], index])
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            values = rng.standard_normal(parameter.shape, dtype=np.float32) * np.float32(scale)
            parameter.copy_(torch.from_numpy(values))
    return head


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(GOLDEN["seeds"]["inputs"])
    noise = torch.from_numpy(rng.standard_normal((1, 16, 7), dtype=np.float32))
    return noise, torch.from_numpy(rng.standard_normal((1, 4096), dtype=np.float32))


def relative(got: torch.Tensor, expected: list) -> float:
    reference = torch.tensor(expected, dtype=torch.float64)
    return float((got.double() - reference).abs().max() / reference.abs().max())


@torch.inference_mode()
def test_predicted_noise_equals_the_public_code(head, inputs):
    noise, cognition = inputs
    assert relative(head(noise, torch.tensor([37]), cognition)[0], GOLDEN["noise"]) <= 1e-4


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddim", DiffusionConfig(guidance=1.0)),
        ("ddim_guided", DiffusionConfig(guidance=1.5)),
        ("ddpm", DiffusionConfig("ddpm", 100, guidance=1.0)),
    ],
)
@torch.inference_mode()
def test_chunks_equal_the_public_code(head, inputs, name, config):
    noise, cognition = inputs
    sampler = Sampler(config)
    predict = head.guided(cognition, sampler.timesteps, config.guidance)
    chunk = sampler.sample(predict, noise, [torch.Generator().manual_seed(GOLDEN["seeds"]["steps"])])
    assert relative(chunk[0], GOLDEN[name]) <= 1e-4


@pytest.mark.parametrize(("size", "parameters"), [("small", 12476807), ("base", 88986887), ("large", 307764231)])
def test_published_parameter_counts(size, parameters):
    with torch.device("meta"):
        head = DiffusionTransformer(HEAD_SIZES[size], features=4096)
    history = 7 * head.config.width + head.config.width  # in published files, never used, not built here
    assert sum(p.numel() for p in head.parameters()) + history == parameters


@torch.inference_mode()
def test_guidance_is_an_extrapolation_from_the_unconditioned_half():
    torch.manual_seed(0)
    head = DiffusionTransformer(MICRO.head, features=32).eval()
    torch.nn.init.normal_(head.final_layer.linear.weight)
    x, cognition = torch.randn(3, 16, 7), torch.randn(3, 32)
    timestep = torch.full((3,), 40)
    conditioned = head(x, timestep, cognition)
    unconditioned = head(x, timestep, head.z_embedder.uncondition.expand(3, -1))
    for guidance in (1.0, 0.5):
        torch.testing.assert_close(head.guided(cognition, (40,), guidance)(x, 40), conditioned)
    expected = unconditioned + 2.5 * (conditioned - unconditioned)
    torch.testing.assert_close(head.guided(cognition, (40,), 2.5)(x, 40), expected, atol=1e-4, rtol=1e-4)


def test_training_after_inference():
    """Tensors cached by a prediction must not be inference tensors in a later backward pass."""
    torch.manual_seed(0)
    head = DiffusionTransformer(MICRO.head, features=8)
    noise, cognition, timesteps = torch.randn(2, 16, 7), torch.randn(2, 8), (40, 30)
    with torch.inference_mode():
        head.guided(cognition, timesteps, 1.5)(noise, 40)
    predict = head.guided(cognition, timesteps, 1.5)
    predict(noise, 30).sum().backward()
    assert head.final_layer.linear.weight.grad.abs().sum() > 0
