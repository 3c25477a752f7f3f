"""The coverage selector against a plain reading of its rule."""

import pytest
import torch

from sqap_vla_ros.contracts import Reason, SelectionContext
from sqap_vla_ros.pruning import make_selector
from sqap_vla_ros.pruning.merging import feature_distances, merge_into_kept
from sqap_vla_ros.pruning.ring import gripper_tensor

GRID = (8, 5)
CPU = torch.device("cpu")


def features(batch, seed=0, grid=GRID):
    return torch.randn(batch, grid[0] * grid[1], 6, generator=torch.Generator().manual_seed(seed))


def brute_force(hidden, patch, radius, budget):
    """{token: reason}, written with lists and loops only."""
    cells = [(row, col) for row in range(GRID[0]) for col in range(GRID[1])]
    kept = {}
    if patch is not None and radius is not None:
        reach = [max(abs(row - patch[0]), abs(col - patch[1])) for row, col in cells]
        ring = sorted((i for i in range(len(cells)) if reach[i] <= radius), key=lambda i: (reach[i], i))
        kept = dict.fromkeys(ring[:budget], Reason.RING)
    away = torch.cdist(hidden.double(), hidden.double()).square()
    while len(kept) < budget:
        remain = [i for i in range(len(cells)) if i not in kept]
        if kept:
            pick = max(remain, key=lambda i: (min(float(away[i, j]) for j in kept), -i))
        else:
            pick = max(remain, key=lambda i: float(away[i].sum()))
        kept[pick] = Reason.DIVERSITY
    return kept


@pytest.mark.parametrize("patch", [None, (0, 0), (4, 2), (7, 4)])
@pytest.mark.parametrize("radius", [None, 0, 1, 2])
@pytest.mark.parametrize("budget", [1, 7, 24, 40])
def test_the_choice_is_the_brute_force_one_on_both_paths(patch, radius, budget):
    selector = make_selector("coverage", ratio=1 - budget / 40, ring_radius=radius)
    hidden = features(1, seed=budget)
    context = SelectionContext(GRID, [patch], hidden=hidden, gripper_on_device=gripper_tensor([patch], CPU))
    expected = brute_force(hidden[0], patch, radius, budget)
    for chosen in (selector.select(context), selector.select_on_device(context)):
        assert dict(zip(chosen.indices[0].tolist(), chosen.reasons[0].tolist(), strict=True)) == expected
        assert chosen.indices[0].tolist() == sorted(expected)


def test_every_dropped_token_joins_the_kept_one_it_is_most_like():
    hidden, indices = features(2, seed=3), torch.tensor([[0, 5, 11, 39], [2, 3, 20, 21]])
    merged, sizes = merge_into_kept(hidden, feature_distances(hidden), indices)
    for row in range(2):
        groups = {int(i): [int(i)] for i in indices[row]}
        for token in range(40):
            if token not in groups:
                groups[min(groups, key=lambda kept: float((hidden[row, kept] - hidden[row, token]).norm()))].append(
                    token
                )
        assert sizes[row].tolist() == [len(groups[int(i)]) for i in indices[row]]
        for place, members in enumerate(groups.values()):
            torch.testing.assert_close(merged[row, place], hidden[row, members].mean(dim=0))
    assert sizes.sum(dim=1).tolist() == [40, 40]


def test_twins_that_are_both_kept_stay_themselves():
    hidden = torch.zeros(1, 40, 6)
    merged, sizes = merge_into_kept(hidden, feature_distances(hidden), torch.tensor([[3, 4, 5]]))
    assert sizes.tolist() == [[38.0, 1.0, 1.0]]
    assert not merged.any()


def test_a_batch_is_its_images_one_by_one():
    selector, hidden, patches = make_selector("coverage"), features(3), [None, (0, 4), (5, 2)]
    together = selector.select(SelectionContext(GRID, patches, hidden=hidden))
    for row in range(3):
        alone = selector.select(SelectionContext(GRID, patches[row : row + 1], hidden=hidden[row : row + 1]))
        assert torch.equal(alone.indices[0], together.indices[row])
        torch.testing.assert_close(alone.merged[0], together.merged[row])
        assert torch.equal(alone.sizes[0], together.sizes[row])


def test_merging_can_be_left_out():
    chosen = make_selector("coverage", merge=False).select(SelectionContext(GRID, [None], hidden=features(1)))
    assert (chosen.merged, chosen.sizes) == (None, None)


@pytest.mark.parametrize(
    ("parameters", "words"), [({"ring_radius": -1}, "ring_radius"), ({"merge": "no"}, "merge"), ({"ratio": 1}, "ratio")]
)
def test_bad_parameters_are_named(parameters, words):
    with pytest.raises(ValueError, match=words):
        make_selector("coverage", **parameters)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the same choice across devices")
def test_choice_is_the_same_on_the_gpu_and_needs_no_synchronisation():
    selector, patches = make_selector("coverage"), [None, (0, 4), (5, 2)]
    expected = selector.select(SelectionContext(GRID, patches, hidden=features(3)))
    gripper = gripper_tensor(patches, torch.device("cuda"))
    context = SelectionContext(GRID, patches, hidden=features(3).cuda(), gripper_on_device=gripper)
    selector.select_on_device(context)
    torch.cuda.set_sync_debug_mode("error")
    try:
        chosen = selector.select_on_device(context)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(chosen.indices.cpu(), expected.indices)
    assert torch.equal(chosen.sizes.cpu(), expected.sizes)
    torch.testing.assert_close(chosen.merged.cpu(), expected.merged)
