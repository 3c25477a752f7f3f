"""The names of the published checkpoint: a dict of groups in `checkpoints/*.pt`, with towers named as in timm.

Every parameter of `CogACT` has one source there (`source_of`). What the published file holds beyond that is never
computed: the last block and final norm of each tower, SigLIP's pooling head, the language head, the history embedder.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import HEAD_SIZES, ActionHeadConfig, TowerConfig

Groups = dict[str, dict[str, Tensor]]
GROUPS = ("vision_backbone", "projector", "llm_backbone", "action_model")
AVERAGED_HEAD = "ema_diffusion"  # the action head averaged over training steps, where it was kept


@dataclass(frozen=True)
class Source:
    """The place of one of our parameters in the published file, and the change of shape on the way.

    part: 0, 1, 2: that third of a fused qkv; "positions": DINOv2's table without its CLS row; "table": SigLIP's, with a
        batch axis; "absent": not in the file, all zeros.
    """

    group: str
    key: str
    part: Literal["whole", 0, 1, 2, "positions", "table", "absent"] = "whole"

    def view(self, stored: Tensor) -> Tensor:
        """Return the part of the stored tensor that has to be read."""
        if isinstance(self.part, int):
            return stored.chunk(3, dim=0)[self.part]
        return stored[0] if self.part == "table" else stored

    def complete(self, view: Tensor) -> Tensor:
        """Return what was read in our shape."""
        if self.part == "positions":
            return torch.cat((view.new_zeros(1, 1, view.shape[-1]), view), dim=1)
        return view


_DINO = "dino_featurizer."
_SIGLIP = "siglip_featurizer."
_THIRDS: dict[str, Literal[0, 1, 2]] = {"q": 0, "k": 1, "v": 2}
# ours -> timm's, inside a block
_DINO_BLOCK = {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_SIGLIP_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
_PLAIN = {
    "vision.dino.embeddings.cls_token": _DINO + "cls_token",
    "vision.dino.embeddings.register_tokens": _DINO + "reg_token",
    "vision.dino.embeddings.patch_embeddings.projection.weight": _DINO + "patch_embed.proj.weight",
    "vision.dino.embeddings.patch_embeddings.projection.bias": _DINO + "patch_embed.proj.bias",
    "vision.siglip.embeddings.patch_embedding.weight": _SIGLIP + "patch_embed.proj.weight",
    "vision.siglip.embeddings.patch_embedding.bias": _SIGLIP + "patch_embed.proj.bias",
}


def source_of(name: str) -> Source:
    """Return the source of one entry of `CogACT.state_dict()`. Raises ValueError for another name."""
    if name.startswith("projector."):
        return Source("projector", name)
    if name.startswith("decoder."):
        return Source("llm_backbone", "llm.model." + name.removeprefix("decoder."))
    if name.startswith("action_head."):
        return Source("action_model", "net." + name.removeprefix("action_head."))
    if name in _PLAIN:
        return Source("vision_backbone", _PLAIN[name])
    if name == "vision.dino.embeddings.mask_token":
        return Source("vision_backbone", "", "absent")
    if name == "vision.dino.embeddings.position_embeddings":
        return Source("vision_backbone", _DINO + "pos_embed", "positions")
    if name == "vision.siglip.embeddings.position_embedding.weight":
        return Source("vision_backbone", _SIGLIP + "pos_embed", "table")
    block = re.fullmatch(r"vision\.(dino|siglip)\.encoder\.layers?\.(\d+)\.(.+)", name)
    if block is None:
        raise ValueError(f"{name!r} is not a parameter of CogACT")
    tower, index, rest = block.groups()
    prefix = f"{_DINO if tower == 'dino' else _SIGLIP}blocks.{index}."
    third = re.fullmatch(r"(?:attention|self_attn)\.([qkv])_proj\.(weight|bias)", rest)
    if third:
        return Source("vision_backbone", f"{prefix}attn.qkv.{third[2]}", _THIRDS[third[1]])
    for ours, timm in (_DINO_BLOCK if tower == "dino" else _SIGLIP_BLOCK).items():
        rest = rest.replace(ours, timm)
    return Source("vision_backbone", prefix + rest)


def head_config(action_model: dict[str, Tensor]) -> ActionHeadConfig:
    """Return the published head size (small, base, large) of these shapes, with their chunk's length and channels.

    The positional embedding has one row for the condition and one for each action, the action embedder one column a
    channel. Raises ValueError where depth and width are none of the published sizes.
    """
    table, embedder = (action_model.get(f"net.{name}") for name in ("positional_embedding", "x_embedder.linear.weight"))
    depth = len({key.split(".")[2] for key in action_model if key.startswith("net.blocks.")})
    for config in HEAD_SIZES.values():
        if table is not None and table.ndim == 2 and (depth, table.shape[1]) == (config.depth, config.width):
            channels = config.channels if embedder is None or embedder.ndim != 2 else embedder.shape[1]
            return dataclasses.replace(config, horizon=len(table) - 1, channels=channels)
    shape = None if table is None else list(table.shape)
    raise ValueError(
        f"the action head has {depth} blocks and positional_embedding {shape}: none of the published sizes "
        + ", ".join(f"{name} ({c.depth}, [actions + 1, {c.width}])" for name, c in HEAD_SIZES.items())
    )


def to_groups(model: CogACT) -> Groups:
    """Return the model as the published dict of dicts, with zeros where that file holds what is never computed.

    Tensors are shared with the model where the format allows.
    """
    groups: Groups = {group: {} for group in GROUPS}
    fused: dict[tuple[str, str], list[Tensor]] = {}
    for name, tensor in model.state_dict().items():
        source = source_of(name)
        tensor = tensor.detach().cpu()
        if isinstance(source.part, int):
            fused.setdefault((source.group, source.key), [tensor] * 3)[source.part] = tensor
        elif source.part == "positions":
            groups[source.group][source.key] = tensor[:, 1:].clone()
        elif source.part == "table":
            groups[source.group][source.key] = tensor[None]
        elif source.part == "whole":
            groups[source.group][source.key] = tensor
    for (group, key), thirds in fused.items():
        groups[group][key] = torch.cat(thirds)
    # timm's table has no row for CLS: what ours adds there goes into the token
    embeddings = model.vision.dino.embeddings
    cls_token = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    groups["vision_backbone"][_DINO + "cls_token"] = cls_token.detach().cpu()
    config = model.config
    vision, head = groups["vision_backbone"], groups["action_model"]
    _add_unused_tower(vision, _DINO, config.vision.dino)
    _add_unused_tower(vision, _SIGLIP, config.vision.siglip)
    _add_pooling_head(vision, config.vision.siglip)
    llm = groups["llm_backbone"]
    llm["llm.lm_head.weight"] = torch.zeros_like(llm["llm.model.embed_tokens.weight"])
    for kind in ("weight", "bias"):
        head[f"net.history_embedder.linear.{kind}"] = torch.zeros_like(head[f"net.x_embedder.linear.{kind}"])
    return groups


def _add_unused_tower(vision: dict[str, Tensor], prefix: str, tower: TowerConfig) -> None:
    """Add the last block, which has the first one's shapes, and the final norm, all zeros."""
    first, last = f"{prefix}blocks.0.", f"{prefix}blocks.{tower.depth - 1}."
    for key in [key for key in vision if key.startswith(first)]:
        vision[key.replace(first, last)] = torch.zeros_like(vision[key])
    norm = vision[f"{prefix}blocks.0.norm1.weight"]
    vision[f"{prefix}norm.weight"], vision[f"{prefix}norm.bias"] = torch.zeros_like(norm), torch.zeros_like(norm)


def _add_pooling_head(vision: dict[str, Tensor], tower: TowerConfig) -> None:
    """Add SigLIP's attention pooling under timm's names, all zeros."""
    width, mlp = tower.width, tower.mlp_width
    like = vision[f"{_SIGLIP}norm.weight"]
    shapes = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}
    shapes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    for name, shape in shapes.items():
        vision[f"{_SIGLIP}attn_pool.{name}.weight"] = like.new_zeros(shape)
        vision[f"{_SIGLIP}attn_pool.{name}.bias"] = like.new_zeros(shape[0])
    vision[f"{_SIGLIP}attn_pool.norm.weight"] = like.new_zeros(width)
    vision[f"{_SIGLIP}attn_pool.norm.bias"] = like.new_zeros(width)
    vision[f"{_SIGLIP}attn_pool.latent"] = like.new_zeros(1, 1, width)
