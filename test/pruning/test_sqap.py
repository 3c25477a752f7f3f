"""SQAP's selection against a brute-force reading of Equations 1, 4 and 5."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sqap_vla_ros.contracts import Reason, SelectionContext
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.pruning.grid import uniform_order
from sqap_vla_ros.pruning.ring import gripper_tensor

CPU = torch.device("cpu")
GRIDS = [(16, 16), (4, 4), (3, 7), (1, 9), (8, 5)]


def brute_force(attention, patch, grid, selector):
    """{token: reason}, written with sets and loops only."""
    rows, cols = grid
    tokens = [(r, c) for r in range(rows) for c in range(cols)]
    budget = selector.budget(len(tokens))
    by_attention = sorted(range(len(tokens)), key=lambda i: (-attention[i], i))
    top = by_attention[: selector.top_k(len(tokens))]
    ring = []
    if patch is not None and selector.ring_radius is not None:
        reach = [max(abs(r - patch[0]), abs(c - patch[1])) for r, c in tokens]
        ring = sorted((i for i in range(len(tokens)) if reach[i] <= selector.ring_radius), key=lambda i: (reach[i], i))
    kept = dict.fromkeys(ring[:budget], Reason.RING)
    for i in top:
        if len(kept) < budget and i not in kept:
            kept[i] = Reason.ATTENTION

    def squared(i, j):
        return (tokens[i][0] - tokens[j][0]) ** 2 + (tokens[i][1] - tokens[j][1]) ** 2

    precedence = {int(t): i for i, t in enumerate(uniform_order(grid))} if selector.ties == "uniform" else range(999)
    anchors = set(kept) if selector.start == "kept" else set()
    while len(kept) < budget:
        remain = [i for i in range(len(tokens)) if i not in kept]
        if anchors:
            pick = max(remain, key=lambda i: (min(squared(i, j) for j in anchors), -precedence[i]))
        else:
            centre = ((rows - 1) / 2, (cols - 1) / 2)
            off = [(r - centre[0]) ** 2 + (c - centre[1]) ** 2 for r, c in tokens]
            pick = min(remain, key=lambda i: (off[i], precedence[i]))
        anchors.add(pick)
        kept[pick] = Reason.SPATIAL
    return kept


@st.composite
def cases(draw):
    grid = draw(st.sampled_from(GRIDS))
    tokens = grid[0] * grid[1]
    # few distinct values: ties everywhere
    levels = draw(st.integers(1, 5))
    attention = draw(st.lists(st.integers(0, levels), min_size=tokens, max_size=tokens))
    patch = draw(st.none() | st.tuples(st.integers(0, grid[0] - 1), st.integers(0, grid[1] - 1)))
    budget = draw(st.integers(1, tokens))
    parameters = {
        "ratio": 1.0 - budget / tokens,
        "attention_share": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        "ring_radius": draw(st.sampled_from([None, 0, 1, 2, 3])),
        "start": draw(st.sampled_from(["kept", "remainder"])),
        "ties": draw(st.sampled_from(["uniform", "lowest"])),
    }
    return grid, np.asarray(attention, dtype=np.float32) / tokens, patch, budget, parameters


@settings(max_examples=120, deadline=None, derandomize=True)
@given(cases())
def test_selection_is_the_brute_force_one_on_both_paths(case):
    grid, attention, patch, budget, parameters = case
    selector = make_selector("sqap", **parameters)
    context = SelectionContext(
        grid, [patch], attention=torch.from_numpy(attention)[None], gripper_on_device=gripper_tensor([patch], CPU)
    )
    expected = brute_force(attention, patch, grid, selector)
    for chosen in (selector.select(context), selector.select_on_device(context)):
        assert chosen.indices.shape == (1, budget)
        assert chosen.indices.dtype == torch.int64
        assert chosen.reasons.dtype == torch.uint8
        assert dict(zip(chosen.indices[0].tolist(), chosen.reasons[0].tolist(), strict=True)) == expected
        assert chosen.indices[0].tolist() == sorted(expected)


@pytest.mark.parametrize("budget", range(1, 257))
def test_every_budget_is_met_exactly(budget):
    selector = make_selector("sqap", ratio=1.0 - budget / 256)
    attention = torch.rand(1, 256, generator=torch.Generator().manual_seed(budget))
    chosen = selector.select(SelectionContext((16, 16), [(3, 12)], attention=attention))
    assert selector.budget(256) == budget
    assert chosen.indices.shape == (1, budget)
    assert len(set(chosen.indices[0].tolist())) == budget


def test_published_default_keeps_154_of_256_of_which_77_by_attention_and_a_whole_ring():
    selector = make_selector("sqap")
    assert (selector.budget(256), selector.top_k(256), selector.prune_layer) == (154, 77, 3)
    attention = torch.rand(1, 256, generator=torch.Generator().manual_seed(0))
    chosen = selector.select(SelectionContext((16, 16), [(8, 8)], attention=attention))
    assert int((chosen.reasons == Reason.RING).sum()) == 25
    top = set(attention[0].topk(77).indices.tolist())
    assert top <= set(chosen.indices[0].tolist())


@pytest.mark.parametrize(
    ("patch", "expected"), [((0, 0), 9), ((0, 8), 15), ((15, 15), 9), ((8, 0), 15), ((1, 1), 16), ((8, 8), 25)]
)
def test_ring_is_clipped_at_every_border(patch, expected):
    selector = make_selector("sqap", attention_share=0.0)
    chosen = selector.select(SelectionContext((16, 16), [patch]))
    ring = chosen.indices[0][chosen.reasons[0] == Reason.RING]
    assert len(ring) == expected
    rows, cols = ring // 16, ring % 16
    assert int((rows - patch[0]).abs().max()) <= 2
    assert int((cols - patch[1]).abs().max()) <= 2


def test_without_gripper_its_quota_goes_to_farthest_points():
    attention = torch.rand(1, 256, generator=torch.Generator().manual_seed(0))
    selector = make_selector("sqap")
    unseen = selector.select(SelectionContext((16, 16), [None], attention=attention))
    assert int((unseen.reasons == Reason.RING).sum()) == 0
    assert int((unseen.reasons == Reason.SPATIAL).sum()) == 154 - 77


def test_ring_outlives_attention_when_the_budget_is_small():
    attention = torch.zeros(1, 256)
    attention[0, 255] = 1.0
    selector = make_selector("sqap", ratio=1 - 9 / 256, attention_share=1.0)
    chosen = selector.select(SelectionContext((16, 16), [(8, 8)], attention=attention))
    assert chosen.indices[0].tolist() == [r * 16 + c for r in (7, 8, 9) for c in (7, 8, 9)]
    assert set(chosen.reasons[0].tolist()) == {Reason.RING}


def test_a_batch_is_its_images_one_by_one():
    generator = torch.Generator().manual_seed(3)
    attention, hidden = torch.rand(4, 256, generator=generator), torch.randn(4, 256, 8, generator=generator)
    patches = [None, (0, 5), (15, 15), (7, 7)]
    for parameters in ({}, {"metric": "cosine"}, {"fill": "random"}, {"fill": "grid"}, {"fill": "attention"}):
        selector = make_selector("sqap", **parameters)
        together = selector.select(SelectionContext((16, 16), patches, attention=attention, hidden=hidden, seed=5))
        for image in range(4):
            rows = slice(image, image + 1)
            alone = selector.select(
                SelectionContext((16, 16), patches[rows], attention=attention[rows], hidden=hidden[rows], seed=5)
            )
            assert torch.equal(alone.indices[0], together.indices[image])
            assert torch.equal(alone.reasons[0], together.reasons[image])


@pytest.mark.parametrize("fill", ["farthest", "attention", "grid", "random"])
@pytest.mark.parametrize("ties", ["lowest", "uniform"])
@pytest.mark.parametrize("metric", ["grid", "cosine"])
def test_tensor_path_equals_numpy_path(fill, ties, metric):
    generator = torch.Generator().manual_seed(7)
    attention, hidden = torch.rand(3, 256, generator=generator), torch.randn(3, 256, 8, generator=generator)
    patches = [None, (2, 2), (15, 0)]
    gripper = gripper_tensor(patches, CPU)
    for ratio in (0.0, 0.2, 0.4, 0.7, 0.95):
        selector = make_selector("sqap", fill=fill, ties=ties, metric=metric, ratio=ratio)
        context = SelectionContext(
            (16, 16), patches, attention=attention, hidden=hidden, seed=2, gripper_on_device=gripper
        )
        one, other = selector.select(context), selector.select_on_device(context)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.reasons, other.reasons)


def test_even_ties_spread_where_the_lowest_index_fills_from_the_top():
    attention = torch.zeros(1, 256)

    def samples_in_upper_half(ties):
        selector = make_selector("sqap", ties=ties, attention_share=0.0, ring_radius=None)
        return int((selector.select(SelectionContext((16, 16), [None], attention=attention)).indices < 128).sum())

    assert samples_in_upper_half("lowest") > 90
    assert abs(samples_in_upper_half("uniform") - 77) <= 4


def test_ablations_keep_what_they_say():
    attention = torch.rand(1, 256, generator=torch.Generator().manual_seed(1))
    context = SelectionContext((16, 16), [(8, 8)], attention=attention, seed=1)

    def reasons(**parameters):
        return set(make_selector("sqap", **parameters).select(context).reasons[0].tolist())

    assert reasons(ring_radius=None, fill="attention") == {Reason.ATTENTION}
    assert reasons(fill="attention") == {Reason.ATTENTION, Reason.RING}
    assert reasons() == {Reason.ATTENTION, Reason.RING, Reason.SPATIAL}
    assert reasons(fill="grid") == {Reason.ATTENTION, Reason.RING, Reason.GRID}
    assert reasons(fill="random", attention_share=0.0) == {Reason.RING, Reason.RANDOM}


def test_only_what_is_used_is_asked_for():
    assert make_selector("sqap").needs == {"attention"}
    assert make_selector("sqap", attention_share=0.0).needs == frozenset()
    assert make_selector("sqap", metric="cosine").needs == {"attention", "hidden"}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": -0.1}, "-0.1"),
        ({"attention_share": 1.5}, "attention_share"),
        ({"ring_radius": -1}, "ring_radius"),
        ({"ring_radius": 1.5}, "1.5"),
        ({"fill": "fps"}, "farthest"),
        ({"metric": "l2"}, "metric"),
        ({"start": "zero"}, "start"),
        ({"ties": "any"}, "ties"),
        ({"query": "bos"}, "query"),
        ({"prune_layer": 0}, "layer 0"),
        ({"radius": 2}, "radius"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        make_selector("sqap", **parameters)


def test_bad_context_is_named():
    selector = make_selector("sqap")
    with pytest.raises(ValueError, match="attention"):
        selector.select(SelectionContext((16, 16), [None]))
    with pytest.raises(ValueError, match=r"outside the grid.*pass None"):
        selector.select(SelectionContext((16, 16), [(16, 0)], attention=torch.zeros(1, 256)))
    with pytest.raises(ValueError, match=r"\(1, 255\)"):
        selector.select(SelectionContext((16, 16), [None], attention=torch.zeros(1, 255)))
    with pytest.raises(ValueError, match="not finite"):
        selector.select(SelectionContext((16, 16), [None], attention=torch.full((1, 256), math.nan)))


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: the same choice is checked across devices"
)
@pytest.mark.parametrize("parameters", [{}, {"fill": "random"}, {"fill": "grid"}, {"ties": "lowest"}, {"ratio": 0.9}])
def test_choice_is_the_same_on_the_gpu_and_needs_no_synchronisation(parameters):
    selector = make_selector("sqap", **parameters)
    patches = [None, (0, 5), (15, 15)]
    attention = torch.rand(3, 256, generator=torch.Generator().manual_seed(0))
    expected = selector.select(SelectionContext((16, 16), patches, attention=attention, seed=1))
    gripper = gripper_tensor(patches, torch.device("cuda"))
    context = SelectionContext((16, 16), patches, attention=attention.cuda(), seed=1, gripper_on_device=gripper)
    chosen = selector.select_on_device(context)
    if selector.runs_on_device:
        torch.cuda.set_sync_debug_mode("error")
        try:
            chosen = selector.select_on_device(context)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(chosen.indices.cpu(), expected.indices)
    assert torch.equal(chosen.reasons.cpu(), expected.reasons)
    assert torch.equal(selector.select(context).indices.cpu(), expected.indices)
