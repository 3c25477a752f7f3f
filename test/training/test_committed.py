"""Chunks that begin with committed actions: training shows them as `Replace` does, and the loss is on the rest."""

from types import SimpleNamespace

import pytest
import torch

from sqap_vla_ros.policy.config import DiffusionConfig
from sqap_vla_ros.policy.sampling.continuing import Past, Replace
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.training.objective import LossWeights, diffusion_loss

COMMITTED = 5
WEIGHTS = LossWeights(repeats=1, uncondition=0.0)


class Head(torch.nn.Module):
    """Keeps what it is shown and answers with what it is told to."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.z_embedder = SimpleNamespace(uncondition=torch.zeros(1, 3))

    def forward(self, x, timestep, condition):
        self.shown, self.timestep = x, timestep
        return self.answer


@pytest.fixture
def chunk():
    return torch.rand(1, 1, 16, 7, generator=torch.Generator().manual_seed(1)) - 0.5


def _loss(head: Head, chunk: torch.Tensor, committed: int | None = COMMITTED, *, clean: bool = False) -> torch.Tensor:
    given = None if committed is None else torch.tensor([[committed]])
    sampler = Sampler(DiffusionConfig())
    return diffusion_loss(
        SimpleNamespace(action_head=head), sampler, torch.zeros(1, 1, 3), chunk, WEIGHTS, given, clean=clean
    )


def test_training_shows_the_prefix_as_sampling_does(chunk, monkeypatch):
    noise = torch.randn(1, 16, 7, generator=torch.Generator().manual_seed(2))
    seen: dict[int, torch.Tensor] = {}

    def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
        seen[timestep] = x
        return torch.zeros_like(x)

    weight = (torch.arange(16) < COMMITTED).float().view(1, 16, 1)
    Replace().sample(Sampler(DiffusionConfig()), predict, noise, [], Past(chunk[0] * weight, weight))
    assert len(seen) == 10
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.clone())
    for timestep, x in seen.items():
        monkeypatch.setattr(torch, "randint", lambda *_, value=timestep, **__: torch.tensor([value]))
        _loss(head := Head(torch.zeros(1, 16, 7)), chunk)
        assert head.timestep.item() == timestep
        torch.testing.assert_close(head.shown[:, :COMMITTED], x[:, :COMMITTED])


def test_a_clean_prefix_is_shown_as_it_is(chunk):
    _loss(head := Head(torch.zeros(1, 16, 7)), chunk, clean=True)
    assert torch.equal(head.shown[:, :COMMITTED], chunk[0, :, :COMMITTED])
    assert (head.shown[:, COMMITTED:] != chunk[0, :, COMMITTED:]).all()


def test_the_loss_is_on_the_actions_after_the_prefix_alone(chunk):
    answer = torch.zeros(1, 16, 7, requires_grad=True)
    _loss(Head(answer), chunk).backward()
    assert (answer.grad[:, :COMMITTED] == 0).all()
    assert (answer.grad[:, COMMITTED:] != 0).all()


def test_without_prefixes_the_loss_is_the_ordinary_one(chunk):
    values = []
    for committed in (None, 0):
        torch.manual_seed(5)
        values.append(_loss(Head(torch.full((1, 16, 7), 0.1)), chunk, committed))
    torch.testing.assert_close(*values)
