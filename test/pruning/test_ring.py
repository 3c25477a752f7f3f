"""The ring around the gripper against a plain reading of Equation 4."""

import pytest
import torch

from sqap_vla_ros.pruning.ring import gripper_tensor, in_ring, ring_distance

CPU = torch.device("cpu")


@pytest.mark.parametrize("radius", [None, 0, 1, 2, 3, 20])
@pytest.mark.parametrize("grid", [(16, 16), (4, 4), (3, 7), (1, 9), (8, 5)])
def test_the_ring_is_every_patch_within_the_radius(grid, radius):
    rows, cols = grid
    patches = [None, *((row, col) for row in range(rows) for col in range(cols))]
    ring = in_ring(ring_distance(gripper_tensor(patches, CPU), grid), radius)
    assert ring.shape == (len(patches), rows * cols)
    for patch, protected in zip(patches, ring, strict=True):
        expected = set()
        if patch is not None and radius is not None:
            for row in range(max(0, patch[0] - radius), min(rows, patch[0] + radius + 1)):
                for col in range(max(0, patch[1] - radius), min(cols, patch[1] + radius + 1)):
                    expected.add(row * cols + col)
        assert set(protected.nonzero().flatten().tolist()) == expected


def test_distance_counts_patches_along_the_longer_axis():
    distance = ring_distance(gripper_tensor([(8, 8)], CPU), (16, 16)).view(16, 16)
    assert (distance[8, 8], distance[7, 9], distance[8, 11], distance[0, 15]) == (0, 1, 3, 8)
