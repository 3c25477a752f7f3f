"""Continued chunks against closed forms: what is given stays, what is free stays free, guidance is its equation."""

import dataclasses

import numpy as np
import pytest
import torch

from sqap_vla_ros import contracts
from sqap_vla_ros.contracts import Commitment, Observation
from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.policy.sampling.continuing import (
    CONTINUATIONS,
    BestOfNoises,
    Guided,
    Past,
    Replace,
    overlap_weights,
    sample_on,
)
from sqap_vla_ros.policy.sampling.diffusion import Sampler, draw_noise

SAMPLER = Sampler(DiffusionConfig())


@pytest.fixture
def observation():
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(15, 0).repeat(20, 1)
    return Observation(image, 0, "pick up the red block")


def generators(count=2):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def noise():
    return draw_noise(generators(), torch.empty(2, 16, 7, dtype=torch.float64))


def past(weights):
    target = torch.linspace(-0.5, 0.5, 2 * 16 * 7, dtype=torch.float64).view(2, 16, 7)
    return Past(target, torch.as_tensor(weights, dtype=torch.float64).expand(2, -1)[..., None])


def curved(x, timestep):
    """A smooth predictor in which every action depends on every other."""
    return torch.tanh(x + 0.3 * x.mean(dim=1, keepdim=True) + 0.01 * timestep)


def test_the_options_of_the_evaluation_are_these():
    assert contracts.CONTINUATIONS[1:] == tuple(CONTINUATIONS)
    keep = tuple(name for name, continuation in CONTINUATIONS.items() if continuation.keeps_executed)
    assert keep == contracts.REAL_TIME_CHUNKING


def test_weights_fall_as_in_equation_five():
    weights = overlap_weights(2, 6)
    c = np.array([4, 3, 2, 1]) / 5
    np.testing.assert_allclose(weights, [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1))])
    np.testing.assert_allclose(overlap_weights(3, 3), 1.0)


@pytest.mark.parametrize("name", CONTINUATIONS)
def test_without_weights_it_is_the_plain_chunk(name):
    got = sample_on(name, SAMPLER, curved, noise(), generators(), past(np.zeros(16)))
    torch.testing.assert_close(got, SAMPLER.sample(curved, noise(), generators()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", [Replace(), Guided()])
def test_the_executed_actions_are_repeated_and_change_the_others(method):
    given = past(overlap_weights(4, 8).tolist() + [0.0] * 8)
    got = method.sample(SAMPLER, curved, noise(), generators(), given)
    torch.testing.assert_close(got[:, :4], given.target[:, :4], atol=0, rtol=0)
    assert (got - SAMPLER.sample(curved, noise(), generators()))[:, 8:].abs().min() > 1e-6


def test_guidance_of_strength_zero_replaces_only():
    given = past(overlap_weights(4, 8).tolist() + [0.0] * 8)
    got = Guided(beta=0.0).sample(SAMPLER, curved, noise(), generators(), given)
    torch.testing.assert_close(got, Replace().sample(SAMPLER, curved, noise(), generators(), given))


def test_guidance_in_closed_form():
    """A predictor of no noise has x_0 = x_t / sqrt(alpha), so J = 1 / sqrt(alpha), action by action."""
    weights, beta = np.full(16, 0.3), 2.0
    given = past(weights)
    got = Guided(beta=beta).sample(SAMPLER, lambda x, t: 0.0 * x, noise(), generators(), given)
    x, target = noise().numpy(), given.target.numpy()
    for timestep, alpha, following in SAMPLER.ddim_steps():
        assert alpha == SAMPLER.alphas[timestep]
        x0 = x / alpha**0.5
        x0 += min(beta, alpha**-0.5) * alpha**-0.5 * 0.3 * (target - x0)
        x = following**0.5 * x0 + ((1 - following) / (1 - alpha)) ** 0.5 * (x - alpha**0.5 * x0)
    np.testing.assert_allclose(got.numpy(), x, atol=1e-10)


def test_the_nearest_of_several_noises_is_kept():
    best = BestOfNoises(6)
    chunks = []
    for index in range(6):
        again = [torch.Generator().manual_seed(g.initial_seed() + 1_000_003 * index) for g in generators()]
        chunks.append(SAMPLER.sample(curved, draw_noise(again, noise()), again))
    wanted = torch.stack([chunks[4][0], chunks[2][1]])
    got = best.sample(SAMPLER, curved, noise(), generators(), Past(wanted, torch.ones(2, 16, 1)))
    torch.testing.assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["replace", "guided"])
def test_the_policy_repeats_what_was_executed(name, observation):
    """Row 0 is committed to four actions, row 1 is free."""
    policy = micro_policy()
    plain = policy.predict_batch([observation, observation], seeds=[1, 2])
    actions = plain[1].deltas[:6]
    continued = dataclasses.replace(observation, commitment=Commitment(actions, 4, name))
    got = policy.predict_batch([continued, observation], seeds=[1, 2])
    np.testing.assert_allclose(got[0].deltas[:4], actions[:4], atol=1e-6)
    assert np.abs(got[0].deltas[6:] - plain[0].deltas[6:]).max() > 1e-6
    np.testing.assert_allclose(got[1].deltas, plain[1].deltas, atol=1e-6)


class Kernel(torch.nn.Module):
    """A linear's fast kernel: it has no gradient, and autograd would not notice."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.linear = linear.in_features, [linear]

    def forward(self, x):
        return self.linear[0](x.detach())


def test_a_head_without_a_gradient_is_not_guided(observation):
    policy = micro_policy()
    block = policy.model.action_head.blocks[1]
    block.mlp.fc1 = Kernel(block.mlp.fc1)
    guided, replaced = (
        dataclasses.replace(observation, commitment=Commitment(np.zeros((2, 7)), 2, name))
        for name in ("guided", "replace")
    )
    with pytest.raises(ValueError, match=r"whose blocks\.1\.mlp\.fc1 has no gradient .* continue by 'replace'"):
        policy.predict(guided)
    policy.predict(replaced)
    with pytest.raises(ValueError, match="continued in one way, got guided and replace"):
        policy.predict_batch([guided, replaced])


def test_what_cannot_be_continued_is_said():
    with pytest.raises(ValueError, match="one of replace, guided, best_of_8, got 'magic'"):
        sample_on("magic", SAMPLER, curved, noise(), generators(), past(np.zeros(16)))
    with pytest.raises(ValueError, match="ddim sampler only, this policy has 'ddpm'"):
        sample_on("guided", Sampler(DiffusionConfig("ddpm", 100)), curved, noise(), generators(), past(np.zeros(16)))
    with pytest.raises(ValueError, match="3 actions 4 cannot be executed"):
        Commitment(np.zeros((3, 7)), 4, "guided")
    for wrong in (np.zeros((3, 6)), np.full((3, 7), np.nan), np.zeros(7)):
        with pytest.raises(ValueError, match=r"must be finite \[n, 7\]"):
            Commitment(wrong, 0, "guided")
    with pytest.raises(ValueError, match="one of replace, guided, best_of_8, got 'none'"):
        Commitment(np.zeros((3, 7)), 3, "none")
