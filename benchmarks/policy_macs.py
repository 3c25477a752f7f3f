"""Multiply-accumulates of one prediction, counted on the real modules at the published geometry (on the meta device).

"published" runs all blocks of the towers and all rows of the last decoder layer, as the public code does; "ours" skips
the towers' last blocks and all rows but the cognition token's in the last layer.

    python benchmarks/policy_macs.py
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from sqap_vla_ros.compression.bops import Workload, macs
from sqap_vla_ros.policy.cogact import CogACT
from sqap_vla_ros.policy.config import COGACT_BASE, PolicyConfig
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.policy.vision import VisionTowers

RESULTS = Path(__file__).parent / "results" / "policy_macs.json"
TEXT_TOKENS = 20  # S = 276, the length the published table is for


def counted(run: Callable[[], object]) -> dict[str, float]:
    """GMACs of what `run` computes: "linear" for products with weights, "attention" for the two attention products."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    flops = {str(operator): value for operator, value in counter.get_flop_counts()["Global"].items()}
    attention = sum(value for name, value in flops.items() if "bmm" in name or "attention" in name)
    return {"linear": (sum(flops.values()) - attention) / 2e9, "attention": attention / 2e9}


def tower_gmacs(config: PolicyConfig, *, all_blocks: bool) -> dict[str, float]:
    """Both towers; with `all_blocks` also the last one, which nothing reads."""
    vision = config.vision
    if all_blocks:
        dino, siglip = (dataclasses.replace(t, depth=t.depth + 1) for t in (vision.dino, vision.siglip))
        vision = dataclasses.replace(vision, dino=dino, siglip=siglip)
    with torch.device("meta"):
        towers = VisionTowers(vision).eval()
        pixels = torch.zeros(1, 3, vision.image_size, vision.image_size)
        parts = {
            "dino": (towers.dino.embeddings, towers.dino.encoder.layer),
            "siglip": (towers.siglip.embeddings, towers.siglip.encoder.layers),
        }

    def run(name: str) -> None:
        embed, layers = parts[name]
        hidden = embed(pixels)
        for layer in layers:
            hidden = layer(hidden, attention_mask=None)

    return {name: sum(counted(lambda name=name: run(name)).values()) for name in parts}


def gmacs(config: PolicyConfig, *, published: bool) -> dict[str, float]:
    """Return the GMACs by module, in the order of execution."""
    with torch.device("meta"):
        model = CogACT(config).eval()
        features = torch.zeros(1, config.vision.tokens, config.vision.width)
        hidden = torch.zeros(1, config.vision.tokens + TEXT_TOKENS, config.decoder.width)
        cognition = torch.zeros(1, config.decoder.width)
        noise = torch.zeros(1, config.head.horizon, config.head.channels)
    result = tower_gmacs(config, all_blocks=published)
    result["projector"] = sum(counted(lambda: model.projector(features)).values())
    if published:
        cos, sin = (table[None] for table in model.decoder.rotary(hidden.shape[1], hidden))
        one = counted(lambda: model.decoder.layers[0](hidden, position_embeddings=(cos, sin)))
        decoder = {kind: value * config.decoder.depth for kind, value in one.items()}
    else:
        decoder = counted(lambda: model.decoder(hidden))
    result |= {f"decoder {kind}": value for kind, value in decoder.items()}
    sampler = Sampler(config.diffusion)

    def sample() -> None:
        predict = model.action_head.guided(cognition, sampler.timesteps, config.diffusion.guidance)
        for timestep in sampler.timesteps:
            predict(noise, timestep)

    result["action head"] = sum(counted(sample).values())
    return result


def main() -> None:
    published, ours = (gmacs(COGACT_BASE, published=flag) for flag in (True, False))
    total, saved = sum(published.values()), sum(ours.values())
    print(f"{'module':20} {'published':>10} {'%':>6} {'ours':>10}   GMACs")
    for name, value in published.items():
        print(f"{name:20} {value:10.1f} {100 * value / total:6.1f} {ours[name]:10.1f}")
    print(f"{'total':20} {total:10.1f} {100.0:6.1f} {saved:10.1f}")
    by_shape = sum(macs(Workload(COGACT_BASE, text_tokens=TEXT_TOKENS)).values()) / 1e9
    print(f"the accounting by shapes (compression/bops.py) gives {by_shape:.1f}")
    RESULTS.write_text(json.dumps({"published": published, "ours": ours, "by_shape_total": by_shape}, indent=2) + "\n")


if __name__ == "__main__":
    main()
