"""Schedule and samplers against closed forms."""

import numpy as np
import pytest
import torch

from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.sampling.diffusion import Sampler, draw_noise, squared_cosine_alphas


def test_schedule_values():
    alphas = squared_cosine_alphas(100)
    assert alphas[[0, 50, 90]] == pytest.approx([0.99936872, 0.47826463, 0.01954438], abs=1e-8)
    # without the cap on beta the product telescopes to f(t + 1) / f(0)
    t = np.arange(98)
    f = np.cos(((t + 1) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(alphas[:98], f, rtol=1e-10)
    assert 1 - alphas[99] / alphas[98] == pytest.approx(0.999)


def test_ddim_visits_ten_steps_from_90():
    assert Sampler(DiffusionConfig()).timesteps == (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
    assert Sampler(DiffusionConfig("ddpm", 100)).timesteps == tuple(range(99, -1, -1))
    assert Sampler(DiffusionConfig(steps=8)).timesteps == (91, 78, 65, 52, 39, 26, 13, 0)


@pytest.mark.parametrize("config", [DiffusionConfig(), DiffusionConfig("ddim", 50), DiffusionConfig("ddpm", 100)])
def test_the_true_noise_leads_to_the_data(config):
    """With a predictor that knows x0, every sampler ends there whatever it drew on the way."""
    sampler = Sampler(config)
    target = torch.linspace(-1, 1, 112, dtype=torch.float64).view(1, 16, 7)

    def oracle(x, timestep):
        alpha = sampler.alphas[timestep]
        return (x - alpha**0.5 * target) / (1 - alpha) ** 0.5

    noise = torch.randn(1, 16, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = sampler.sample(oracle, noise, [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(got, target, atol=1e-6, rtol=0)


def test_ddim_with_constant_noise_is_a_closed_form():
    """If the predicted noise is always the noise itself, x_t stays sqrt(a) x0 + sqrt(1 - a) e with x0 from t = 90."""
    sampler = Sampler(DiffusionConfig())
    noise = torch.full((1, 16, 7), 0.5, dtype=torch.float64)
    got = sampler.sample(lambda x, t: noise, noise, [])
    alpha = sampler.alphas[90]
    torch.testing.assert_close(got, (noise - (1 - alpha) ** 0.5 * noise) / alpha**0.5)


def test_ddpm_draws_follow_each_rows_generator():
    sampler = Sampler(DiffusionConfig("ddpm", 100))
    noise = torch.zeros(2, 16, 7)

    def run(rows):
        return sampler.sample(
            lambda x, t: 0.1 * x, noise[: len(rows)], [torch.Generator().manual_seed(s) for s in rows]
        )

    both = run([1, 2])
    torch.testing.assert_close(both[0], run([1])[0])
    torch.testing.assert_close(both[1], run([2])[0])
    assert (both[0] - both[1]).abs().max() > 1e-3


def test_forward_process_has_the_marginals_of_the_schedule():
    sampler = Sampler(DiffusionConfig())
    noise = draw_noise([torch.Generator().manual_seed(s) for s in range(3)], torch.empty(3, 16, 7))
    x0 = torch.ones(3, 16, 7)
    noisy = sampler.add_noise(x0, torch.tensor([0, 50, 90]), noise)
    for row, timestep in enumerate((0, 50, 90)):
        alpha = sampler.alphas[timestep]
        torch.testing.assert_close(noisy[row], (alpha**0.5 + (1 - alpha) ** 0.5 * noise[row]).float())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "euler"}, "'ddim' or 'ddpm', got 'euler'"),
        ({"steps": 30}, r"equal strides through 100 training steps for DDIM, got 30; 25 and 34 are possible"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"sampler": "ddpm", "steps": 10}, "set steps=100, got 10"),
    ],
)
def test_bad_configurations_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**values)
