import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sqap_vla_ros.compression.accelerators.table import accelerate
from sqap_vla_ros.compression.accelerators.tome import MergedTokensSelector, MergingTowers, Tome, match, merge
from sqap_vla_ros.contracts import Observation, Reason, SelectionContext
from sqap_vla_ros.policy.micro.policy import micro_policy


@pytest.fixture(scope="module")
def image():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 224, 224), dtype=np.uint8))


@pytest.fixture(scope="module")
def towers():
    return micro_policy(seed=0).model.vision


def test_merging_nothing_is_the_plain_towers(towers, image):
    with torch.inference_mode():
        plain, _ = towers(image)
        merged, sizes = MergingTowers(towers, 256)(image, with_saliency=True)
    torch.testing.assert_close(merged, plain, atol=1e-5, rtol=1e-5)
    assert (sizes == 1).all()


def test_groups_share_their_features_and_cover_every_patch(towers, image):
    with torch.inference_mode():
        features, sizes = MergingTowers(towers, 154)(image, with_saliency=True)
    for row, size in zip(features, sizes, strict=True):
        assert int((size > 0).sum()) == 154
        assert float(size.sum()) == 256
        distinct, inverse, counts = row.unique(dim=0, return_inverse=True, return_counts=True)
        assert len(distinct) == 154
        first = {int(g): int((inverse == g).nonzero()[0]) for g in range(154)}
        assert all(float(size[first[g]]) == float(counts[g]) for g in range(154))


def test_matching_is_the_greedy_bipartite_one():
    keys = torch.randn(1, 11, 6, generator=torch.Generator().manual_seed(4))
    target = match(keys, 3)[0]
    unit = F.normalize(keys[0], dim=-1)
    proposals = []
    for even in range(0, 11, 2):
        similarity = {odd: float(unit[even] @ unit[odd]) for odd in range(1, 11, 2)}
        partner = max(similarity, key=similarity.get)
        proposals.append((similarity[partner], even, partner))
    gone = {even: odd for _, even, odd in sorted(proposals, reverse=True)[:3]}
    stay = [token for token in range(11) if token not in gone]
    expected = [stay.index(gone.get(token, token)) for token in range(11)]
    assert target.tolist() == expected


def test_merging_weighs_by_size():
    hidden, size = torch.tensor([[[1.0], [4.0], [10.0]]]), torch.tensor([[3.0, 1.0, 1.0]])
    merged, sizes = merge(hidden, size, torch.tensor([[0, 0, 1]]), 2)
    assert merged.flatten().tolist() == [(3 * 1 + 4) / 4, 10.0]
    assert sizes.tolist() == [[4.0, 1.0]]


def test_identical_patches_merge_without_loss():
    """With equal tokens, proportional attention and averages change nothing."""
    towers = micro_policy(seed=1).model.vision
    with torch.inference_mode():
        towers.dino.embeddings.position_embeddings.zero_()
        towers.siglip.embeddings.position_embedding.weight.zero_()
        image = torch.full((1, 3, 224, 224), 90, dtype=torch.uint8)
        plain, _ = towers(image)
        merged, _ = MergingTowers(towers, 154)(image)
    torch.testing.assert_close(merged, plain, atol=1e-4, rtol=1e-4)


def test_policy_with_merged_tokens_predicts():
    policy = accelerate(micro_policy(seed=0), Tome(ratio=0.4))
    picture = np.random.default_rng(1).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    chunk = policy.predict(Observation(picture, 0, "pick up the red block"))
    assert chunk.selection.method == "tome"
    assert len(chunk.selection.indices) == 154
    assert set(chunk.selection.reasons) == {Reason.MERGED}
    assert math.isfinite(float(np.abs(chunk.deltas).sum()))


def test_too_much_merging_is_refused(towers):
    with pytest.raises(ValueError, match=r"256 tokens into 8.*smaller share"):
        MergingTowers(towers, 8)


def test_the_first_token_of_every_group_survives():
    sizes = torch.zeros(2, 256)
    for row, seed in zip(sizes, (1, 2), strict=True):
        row[torch.randperm(256, generator=torch.Generator().manual_seed(seed))[:154]] = 1.0
    chosen = MergedTokensSelector().select(SelectionContext((16, 16), [None, None], saliency=sizes))
    assert chosen.indices.tolist() == [row.nonzero().flatten().tolist() for row in sizes]
    assert (MergedTokensSelector().budget(256), MergedTokensSelector().prune_layer) == (154, 0)


def test_towers_that_do_not_merge_are_refused():
    with pytest.raises(ValueError, match="MergingTowers"):
        MergedTokensSelector().select(SelectionContext((16, 16), [None], saliency=torch.ones(1, 256)))
