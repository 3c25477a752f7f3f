"""Scores against forward passes: what the Jacobian predicts is what small changes do."""

import pytest
import torch

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.compress import decoder_inputs
from sqap_vla_ros.compression.layer_work import rotary_of
from sqap_vla_ros.compression.load import load_policy
from sqap_vla_ros.compression.sensitivity.backward import FloatDecoder, layer_moments, make_cotangents, make_references
from sqap_vla_ros.compression.sensitivity.measured import (
    action_deviation,
    changed_cognition,
    epsilon_deviation,
    harmful_zeros,
    held_out_errors,
    spearman,
)
from sqap_vla_ros.compression.sensitivity.objectives import OBJECTIVES, FrozenHead, Objective
from sqap_vla_ros.compression.sensitivity.scores import METRICS, JacobianVector, Metric
from sqap_vla_ros.policy.architecture import COGACT
from sqap_vla_ros.policy.micro.policy import micro_policy

DEPTH = 6
OBSERVATIONS = synthetic_observations(3)


class Setup:
    """A micro policy, its references on three observations, and one pass back through all layers."""

    def __init__(self):
        self.policy = micro_policy()
        for parameter in self.policy.model.parameters():
            parameter.requires_grad_(False)
        decoder = self.policy.model.decoder
        self.decoder, self.rotary = FloatDecoder(decoder.layers, decoder.norm, rotary_of(decoder)), rotary_of(decoder)
        self.head = FrozenHead(self.policy)
        hidden = decoder_inputs(self.policy, OBSERVATIONS)
        self.references = make_references(self.decoder, hidden, self.head)

    def moments(self, objective, probes, deltas=None, down_to=0):
        """Moments by (layer, linear), from the last layer down."""
        cotangents = make_cotangents(self.decoder, self.references, self.head, objective, probes=probes, seed=1)
        found = {}
        for layer in reversed(range(down_to, DEPTH)):
            mine, cotangents = layer_moments(
                self.decoder.layers[layer],
                [reference.hidden[layer] for reference in self.references],
                cotangents,
                self.rotary,
                final=layer == DEPTH - 1,
                deltas={name: d for (at, name), d in (deltas or {}).items() if at == layer},
            )
            found |= {(layer, name): moments for name, moments in mine.items()}
        return found


@pytest.fixture(scope="module")
def setup():
    return Setup()


def test_references_are_the_policys_own_predictions(setup):
    for index, (reference, observation) in enumerate(zip(setup.references, OBSERVATIONS, strict=True)):
        expected = setup.policy.predict(observation, seed=index).normalized
        torch.testing.assert_close(reference.chunk[0].double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-4)


def every_direction(setup):
    """Cotangents of all directions of one observation's cognition feature: their mean is exact, not a sample."""
    inputs = setup.references[0].hidden[-1]
    output = setup.decoder.layers[-1](inputs, position_embeddings=setup.rotary(inputs))[:, -1:].requires_grad_(True)
    cognition = setup.decoder.norm(output).squeeze(1)
    width = cognition.shape[1]
    return [
        [
            torch.autograd.grad(cognition, output, width**0.5 * unit[None], retain_graph=True)[0]
            for unit in torch.eye(width)
        ]
    ]


def test_the_score_of_a_small_change_is_its_effect_on_the_cognition_feature(setup):
    cotangents, reference = every_direction(setup), setup.references[0]
    for layer in reversed(range(3, DEPTH)):
        module = setup.decoder.layers[layer]
        names = COGACT.linears if layer == DEPTH - 1 else (COGACT.linears[layer],)
        deltas = {
            name: {4: 1e-3 * torch.randn(COGACT.linear(module, name).weight.shape, generator=torch.manual_seed(0))}
            for name in names
        }
        moments, cotangents = layer_moments(
            module, [reference.hidden[layer]], cotangents, setup.rotary, final=layer == DEPTH - 1, deltas=deltas
        )
        for name in names:
            row = torch.tensor([17])
            values = COGACT.linear(module, name).weight[row] + deltas[name][4][row]
            changed = changed_cognition(setup.decoder, reference, layer, name, row, values)
            exact = float((changed - reference.cognition).double().square().sum())
            assert float(moments[name].change[4][17]) == pytest.approx(exact, rel=0.02), (layer, name)


def test_the_last_layer_is_seen_as_it_is_computed(setup):
    """Keys and values of all tokens, everything else of the cognition token alone."""
    moments = setup.moments(OBJECTIVES["epsilon"], 4, down_to=5)
    for name in COGACT.linears:
        found = moments[5, name]
        assert (found.gain >= 0).all()
        assert found.plain.tokens == sum(
            len(r.hidden[0][0]) if name in ("k_proj", "v_proj") else 1 for r in setup.references
        )
        assert float(found.weighted.sum.trace()) > 0


def test_metrics_rank_rows_as_measured(setup):
    """Eq. 4 of sixteen random rows, two widths apart, against the shipped metric."""
    generator = torch.Generator().manual_seed(3)
    chosen = [
        (int(torch.randint(0, DEPTH, (1,), generator=generator)), COGACT.linears[index % 7]) for index in range(16)
    ]
    deltas = {}
    for layer, name in chosen:
        weight = COGACT.linear(setup.decoder.layers[layer], name).weight
        noise = torch.randn(weight.shape, generator=generator) * weight.std()
        deltas[layer, name] = {2: 0.5 * noise, 4: 0.1 * noise}
    moments = setup.moments(OBJECTIVES["epsilon"], 24, deltas)
    predicted, measured, norms = [], [], []
    for index, (layer, name) in enumerate(chosen):
        weight, row = COGACT.linear(setup.decoder.layers[layer], name).weight, torch.tensor([3 * index])
        scores = METRICS["epsilon"].score(moments[layer, name], deltas[layer, name])
        for bits, delta in deltas[layer, name].items():
            predicted.append(float(scores[bits][row]))
            norms.append(float(METRICS["eq6"].score(moments[layer, name], deltas[layer, name])[bits][row]))
            arguments = (setup.decoder, setup.references, setup.head, layer, name, row)
            measured.append(epsilon_deviation(*arguments, weight[row] + delta[row]))
            assert action_deviation(*arguments, weight[row] + delta[row]) > 0
    assert spearman(torch.tensor(predicted), torch.tensor(measured)) > 0.95
    assert spearman(torch.tensor(predicted), torch.tensor(measured)) > spearman(
        torch.tensor(norms), torch.tensor(measured)
    )


def test_measuring_leaves_the_weights_alone(setup):
    weight = COGACT.linear(setup.decoder.layers[1], "up_proj").weight
    before = weight.clone()
    changed_cognition(setup.decoder, setup.references[0], 1, "up_proj", torch.tensor([2]), torch.zeros(1, 128))
    assert torch.equal(weight, before)


def test_the_released_proxy_weighs_channels_by_the_inverse_hessian(setup):
    moments = setup.moments(OBJECTIVES["cognition"], 1, down_to=5)[5, "down_proj"]
    delta = torch.zeros(2, moments.plain.sum.shape[0])
    delta[0, 0] = delta[1, 1] = 1.0
    hessian = moments.plain.matrix.double()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    expected = 1 / upper.diagonal()[:2].square()
    torch.testing.assert_close(METRICS["released"].score(moments, {4: delta})[4].double(), expected, rtol=1e-3, atol=0)


def test_zeros_that_do_more_together_than_alone_are_harmful(setup):
    bits = {(3, "up_proj"): torch.full((352,), 4), (4, "up_proj"): torch.full((352,), 4)}
    for widths in bits.values():
        widths[:40] = 0
    scores = {linear: {0: torch.full((352,), size)} for linear, size in zip(bits, (1e-12, 1e3), strict=True)}
    assert harmful_zeros(bits, scores, setup.decoder, setup.references, setup.head) == {(3, "up_proj")}


def test_held_out_errors_are_none_for_the_same_policy_and_fall_with_bits():
    plain = micro_policy()
    assert held_out_errors(plain, plain, OBSERVATIONS) == {
        "cognition": 0.0,
        "epsilon": 0.0,
        "noise": 0.0,
        "action": 0.0,
    }
    four, eight = (
        held_out_errors(plain, load_policy("micro", recipe, dtype="float32"), OBSERVATIONS)
        for recipe in ("rtn_w4a4", "rtn_w8a8")
    )
    assert all(0 < eight[key] < 0.5 * four[key] for key in ("cognition", "epsilon"))


class FirstAction(Objective):
    """A toy: only the first of the predicted actions counts."""

    def cotangent(self, head, reference, generator):
        cognition = reference.cognition.detach().requires_grad_(True)
        first = head.chunk(cognition, reference.noise)[:, 0]
        return torch.autograd.grad((first * torch.randn(first.shape, generator=generator)).sum(), cognition)[0]


def test_a_new_metric_is_one_class_and_one_row(setup, monkeypatch):
    monkeypatch.setitem(METRICS, "first", JacobianVector(FirstAction()))
    metric: Metric = METRICS["first"]
    deltas = {(5, "up_proj"): {4: torch.ones(352, 128)}}
    moments = setup.moments(metric.objective, 2, deltas, down_to=5)[5, "up_proj"]
    assert float(metric.score(moments, deltas[5, "up_proj"])[4].sum()) > 0


def test_rank_correlation():
    assert spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 25.0])) == pytest.approx(1.0)
    assert spearman(torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([4.0, 3.0, 3.0, 1.0])) == pytest.approx(-1.0)
