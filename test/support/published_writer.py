"""Writes a published-format folder for a small geometry, from the format's description alone.

Independent of `policy/checkpoints/published_names.py` on purpose: names and shapes are spelled out here the way timm,
Llama and the published code spell them, and `reference_features` computes the towers from those names in plain torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sqap_vla_ros.policy.config import PolicyConfig, TowerConfig

Part = dict[str, Tensor]


def random_groups(config: PolicyConfig, seed: int = 0) -> dict[str, Part]:
    """The dict of dicts of a `.pt` file, with every key the published files hold."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)

    vision: Part = {}
    for prefix, tower in (("dino_featurizer.", config.vision.dino), ("siglip_featurizer.", config.vision.siglip)):
        vision |= {prefix + key: value for key, value in _tower(tower, config, draw).items()}
    width, tower = config.vision.siglip.width, config.vision.siglip
    vision["siglip_featurizer.attn_pool.latent"] = draw(1, 1, width)
    vision["siglip_featurizer.attn_pool.kv.weight"] = draw(2 * width, width)

    d, hidden, fused = config.decoder.width, config.projector_width, config.vision.width
    projector = _linears(draw, {"projector.0": (hidden, fused), "projector.2": (d, hidden), "projector.4": (d, d)})

    llm: Part = {
        "llm.model.embed_tokens.weight": torch.randn(config.decoder.vocabulary, d, generator=generator),
        "llm.model.norm.weight": 1 + draw(d),
        "llm.lm_head.weight": draw(config.decoder.vocabulary, d),
    }
    for index in range(config.decoder.depth):
        prefix = f"llm.model.layers.{index}."
        for name in "qkvo":
            llm[f"{prefix}self_attn.{name}_proj.weight"] = draw(d, d)
        llm[f"{prefix}mlp.gate_proj.weight"] = draw(config.decoder.mlp_width, d)
        llm[f"{prefix}mlp.up_proj.weight"] = draw(config.decoder.mlp_width, d)
        llm[f"{prefix}mlp.down_proj.weight"] = draw(d, config.decoder.mlp_width)
        llm[f"{prefix}input_layernorm.weight"] = 1 + draw(d)
        llm[f"{prefix}post_attention_layernorm.weight"] = 1 + draw(d)

    h = config.head.width
    c = config.head.channels
    shapes = {"x_embedder.linear": (h, c), "history_embedder.linear": (h, c), "z_embedder.linear": (h, d)}
    shapes |= {"t_embedder.mlp.0": (h, 256), "t_embedder.mlp.2": (h, h), "final_layer.linear": (c, h)}
    for index in range(config.head.depth):
        block = f"blocks.{index}."
        shapes |= {block + "attn.qkv": (3 * h, h), block + "attn.proj": (h, h)}
        shapes |= {block + "mlp.fc1": (4 * h, h), block + "mlp.fc2": (h, 4 * h)}
    action = {f"net.{key}": value for key, value in _linears(draw, shapes).items()}
    action["net.positional_embedding"] = draw(config.head.horizon + 1, h)
    action["net.z_embedder.uncondition"] = draw(1, d)
    return {"vision_backbone": vision, "projector": projector, "llm_backbone": llm, "action_model": action}


def write_folder(folder: Path, groups: dict[str, Part], datasets: tuple[str, ...] = ("bridge_orig",)) -> Path:
    """The folder with its three files; returns the `.pt`."""
    channels = len(groups["action_model"]["net.final_layer.linear.bias"])
    action: dict[str, list] = {name: [0.0] * channels for name in ("mean", "std", "max", "min")}
    action |= {"q01": [-0.02] * channels, "q99": [0.03] * channels, "mask": [True] * (channels - 1) + [False]}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    (folder / "dataset_statistics.json").write_text(json.dumps({name: {"action": action} for name in datasets}))
    weights = folder / "checkpoints" / "step-000100-epoch-01-loss=0.0100.pt"
    torch.save({"model": groups}, weights)
    return weights


def _linears(draw, shapes: dict[str, tuple[int, int]]) -> Part:
    part: Part = {}
    for name, shape in shapes.items():
        part[f"{name}.weight"], part[f"{name}.bias"] = draw(*shape), draw(shape[0])
    return part


def _tower(tower: TowerConfig, config: PolicyConfig, draw) -> Part:
    d, patch = tower.width, config.vision.patch_size
    part: Part = {
        "pos_embed": draw(1, config.vision.tokens, d),
        "patch_embed.proj.weight": draw(d, 3, patch, patch) * 0.3,
        "patch_embed.proj.bias": draw(d),
        "norm.weight": draw(d),
        "norm.bias": draw(d),
    }
    if tower.registers:
        part |= {"cls_token": draw(1, 1, d), "reg_token": draw(1, tower.registers, d)}
    for index in range(tower.depth):
        block = f"blocks.{index}."
        shapes = {block + "attn.qkv": (3 * d, d), block + "attn.proj": (d, d)}
        shapes |= {block + "mlp.fc1": (tower.mlp_width, d), block + "mlp.fc2": (d, tower.mlp_width)}
        part |= _linears(draw, shapes)
        for norm in ("norm1", "norm2"):
            part |= {f"{block}{norm}.weight": 1 + draw(d), f"{block}{norm}.bias": draw(d)}
        if tower.registers:
            part |= {f"{block}ls1.gamma": 1 + draw(d), f"{block}ls2.gamma": 1 + draw(d)}
    return part


def reference_features(vision: Part, prefix: str, tower: TowerConfig, pixels: Tensor, patch: int) -> Tensor:
    """[B, 3, S, S] normalised pixels to the penultimate block's patch tokens [B, N, D], as timm computes them."""
    p = {key.removeprefix(prefix): value for key, value in vision.items() if key.startswith(prefix)}
    x = F.conv2d(pixels, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + p["pos_embed"]
    extra = 0
    if tower.registers:
        extra = 1 + tower.registers
        head = torch.cat((p["cls_token"], p["reg_token"]), dim=1).expand(len(x), -1, -1)
        x = torch.cat((head, x), dim=1)
    for index in range(tower.depth - 1):
        b = f"blocks.{index}."

        def linear(name: str, value: Tensor, b: str = b) -> Tensor:
            return F.linear(value, p[f"{b}{name}.weight"], p[f"{b}{name}.bias"])

        def norm(name: str, value: Tensor, b: str = b) -> Tensor:
            return F.layer_norm(value, (tower.width,), p[f"{b}{name}.weight"], p[f"{b}{name}.bias"], eps=1e-6)

        qkv = linear("attn.qkv", norm("norm1", x)).unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-1, -2) * qkv.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + p.get(f"{b}ls1.gamma", 1.0) * linear("attn.proj", (weights @ qkv[2]).transpose(1, 2).flatten(2))
        x = x + p.get(f"{b}ls2.gamma", 1.0) * linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm("norm2", x))))
    return x[:, extra:]
