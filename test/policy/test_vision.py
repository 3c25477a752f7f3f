"""The vision towers under versions of transformers that arrange DINOv2's attention otherwise."""

from types import SimpleNamespace

import torch
from torch import nn

from sqap_vla_ros.policy.vision import FlatAttention


def test_linears_further_down_get_the_newer_names_and_attend_the_same():
    torch.manual_seed(0)
    query, key, value, dense = (nn.Linear(12, 12) for _ in range(4))
    nested = SimpleNamespace(
        attention=SimpleNamespace(query=query, key=key, value=value), output=SimpleNamespace(dense=dense)
    )
    flat = FlatAttention(nested, heads=3)
    assert {name.split(".")[0] for name, _ in flat.named_parameters()} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert flat.q_proj is query
    x = torch.randn(2, 5, 12)
    rows = []
    for q, k, v in zip(*(linear(x).split(4, dim=-1) for linear in (query, key, value)), strict=True):
        rows.append((q @ k.transpose(1, 2) / 2.0).softmax(-1) @ v)
    torch.testing.assert_close(flat(x), dense(torch.cat(rows, -1)))
