"""The other selectors, each against a plain reading of its rule."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sqap_vla_ros.contracts import Reason, SelectionContext
from sqap_vla_ros.pruning import SELECTORS, make_selector
from sqap_vla_ros.pruning.grid import uniform_order

GRID = (16, 16)


def context(batch=2, seed=0, width=12):
    generator = torch.Generator().manual_seed(seed)
    return SelectionContext(
        GRID,
        [(5, 9)] * batch,
        attention=torch.rand(batch, 256, generator=generator),
        hidden=torch.randn(batch, 256, width, generator=generator),
        saliency=torch.rand(batch, 256, generator=generator),
        seed=seed,
    )


@pytest.mark.parametrize("name", sorted(SELECTORS))
@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.78125])
def test_contract(name, ratio):
    selector = make_selector(name, ratio=ratio)
    given = context()
    chosen, again = selector.select(given), selector.select(given)
    assert selector.name == name
    assert chosen.indices.shape == (2, selector.budget(256)) == chosen.reasons.shape
    assert (chosen.indices.diff(dim=1) > 0).all()
    assert int(chosen.indices.min()) >= 0
    assert int(chosen.indices.max()) < 256
    assert torch.equal(chosen.indices, again.indices)
    assert torch.equal(chosen.reasons, again.reasons)


@pytest.mark.parametrize(
    ("name", "kept", "layer"),
    [
        ("sqap", 154, 3),
        ("random_same_budget", 154, 3),
        ("uniform_grid", 154, 3),
        ("random_drop", 112, 3),
        ("coverage", 154, 3),
        ("fastv", 56, 2),
        ("relevance_diversity", 112, 2),
        ("divprune", 154, 0),
        ("fastervlm", 154, 0),
        ("visionzip", 154, 0),
    ],
)
def test_defaults(name, kept, layer):
    selector = make_selector(name)
    assert (selector.budget(256), selector.prune_layer) == (kept, layer)


def test_unknown_selector_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'top_k'.*fastv.*sqap"):
        make_selector("top_k")


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_an_unknown_parameter_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"token selector '{name}': unknown 'ratioo'; known: .*layer"):
        make_selector(name, ratioo=0.4)


def test_fastv_is_the_top_of_the_attention():
    given = context()
    chosen = make_selector("fastv").select(given)
    for image in range(2):
        expected = sorted(np.argsort(-given.attention[image].numpy(), kind="stable")[:56].tolist())
        assert chosen.indices[image].tolist() == expected


def test_random_depends_on_the_seed_alone():
    selector = make_selector("random_drop")
    one = selector.select(context(seed=1)).indices
    assert torch.equal(one[0], one[1])
    assert torch.equal(one[0], selector.select(context(batch=1, seed=1)).indices[0])
    assert not torch.equal(one, selector.select(context(seed=2)).indices)


def test_uniform_grid_is_stride_two_at_a_quarter_and_a_checkerboard_at_half():
    quarter = np.sort(uniform_order(GRID)[:64])
    rows, cols = np.divmod(quarter, 16)
    assert len(np.unique(rows)) == len(np.unique(cols)) == 8
    assert set(np.diff(np.unique(rows))) == {2}
    rows, cols = np.divmod(uniform_order(GRID)[:128], 16)
    assert len(set((rows + cols) % 2)) == 1


def test_uniform_grid_never_leaves_a_hole():
    chosen = make_selector("uniform_grid").select(context(batch=1)).indices[0].numpy()
    rows, cols = np.divmod(chosen, 16)
    counts = [int(((rows // 8 == a) & (cols // 8 == b)).sum()) for a in range(2) for b in range(2)]
    assert max(counts) - min(counts) <= 2


def test_divprune_is_greedy_max_min_cosine_distance():
    given = context(batch=1)
    chosen = make_selector("divprune", ratio=1 - 40 / 256).select(given)
    unit = F.normalize(given.hidden[0], dim=-1)
    distance = (1 - unit @ unit.T).clamp_min(0).fill_diagonal_(math.inf)
    picks = [int(distance.amin(dim=1).argmax())]
    while len(picks) < 40:
        nearest = distance[picks].amin(dim=0)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
    assert chosen.indices[0].tolist() == sorted(picks)


def test_fastervlm_is_the_top_of_the_saliency():
    given = context()
    chosen = make_selector("fastervlm").select(given)
    expected = given.saliency.topk(154, dim=1).indices.sort(dim=1).values
    assert torch.equal(chosen.indices, expected)


def test_visionzip_keeps_dominant_content_and_averages_the_rest():
    given = context(batch=1)
    chosen = make_selector("visionzip", ratio=0.75).select(given)
    hidden, saliency = given.hidden[0], given.saliency[0]
    order = saliency.argsort(descending=True)
    dominant, rest = sorted(order[:54].tolist()), sorted(order[54:].tolist())
    step = len(rest) // 10
    targets = rest[: step * 10 : step]
    groups = {t: [t] for t in targets}
    for token in rest:
        if token not in groups:
            similarity = [float(F.cosine_similarity(hidden[token], hidden[t], dim=0)) for t in targets]
            groups[targets[int(np.argmax(similarity))]].append(token)
    assert chosen.indices[0].tolist() == sorted(dominant + targets)
    content = dict(zip(chosen.indices[0].tolist(), chosen.merged[0], strict=True))
    for token in dominant:
        assert torch.equal(content[token], hidden[token])
    for target, members in groups.items():
        torch.testing.assert_close(content[target], hidden[members].mean(dim=0))


def test_key_tokens_then_relevance_then_diversity():
    given = context(batch=1)
    chosen = make_selector("relevance_diversity").select(given)
    order = given.attention[0].argsort(descending=True).tolist()
    unit = F.normalize(given.hidden[0], dim=-1)
    unlike = 1 - (unit @ unit[order[:8]].T).amax(dim=1)
    relevant = order[: 8 + 52]
    diverse = sorted(set(range(256)) - set(relevant), key=lambda i: -float(unlike[i]))[: 112 - 60]
    assert chosen.indices[0].tolist() == sorted(relevant + diverse)
    by_reason = dict(zip(chosen.indices[0].tolist(), chosen.reasons[0].tolist(), strict=True))
    assert all(by_reason[i] == Reason.DIVERSITY for i in diverse)


def test_before_decoder_selectors_refuse_a_later_layer():
    with pytest.raises(ValueError, match="prune_layer must be 0, got 3"):
        make_selector("divprune", prune_layer=3)
