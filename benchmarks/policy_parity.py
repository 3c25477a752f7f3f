"""Compares the action head, its samplers and the towers with the public CogACT code and timm, on the same weights.

Needs what this package does not depend on: timm 0.9.10 (with torchvision) and a checkout of microsoft/CogACT.
Writes the differences to benchmarks/results/policy_parity.json and, for the test, the public code's outputs to
test/policy/golden_action_head.json. Weights are drawn from seeds, so neither file holds any.

    python benchmarks/policy_parity.py --cogact ~/CogACT
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sqap_vla_ros.policy.action_head import DiffusionTransformer
from sqap_vla_ros.policy.checkpoints.published_names import source_of
from sqap_vla_ros.policy.config import HEAD_SIZES, DiffusionConfig, TowerConfig, VisionConfig
from sqap_vla_ros.policy.sampling.diffusion import Sampler
from sqap_vla_ros.policy.vision import VisionTowers

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "policy_parity.json"
GOLDEN = ROOT / "test" / "policy" / "golden_action_head.json"
FEATURES = 4096
WEIGHT_SEED, INPUT_SEED, STEP_SEED = 7, 11, 13


def seeded_weights(module: nn.Module, seed: int) -> None:
    """Fills parameters in order of name; equal names and shapes get equal numbers in any implementation."""
    skipped = {name for name, _ in module.named_parameters() if name.startswith("history_embedder")}
    parameters = [(name, p) for name, p in sorted(module.named_parameters()) if name not in skipped]
    with torch.no_grad():
        for index, (_, parameter) in enumerate(parameters):
            values = np.random.default_rng([seed, index]).standard_normal(parameter.shape, dtype=np.float32)
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.from_numpy(values * np.float32(scale)))


def inputs() -> tuple[Tensor, Tensor]:
    """Noise [1, 16, 7] and a cognition feature [1, 4096]."""
    rng = np.random.default_rng(INPUT_SEED)
    return (
        torch.from_numpy(rng.standard_normal((1, 16, 7), dtype=np.float32)),
        torch.from_numpy(rng.standard_normal((1, FEATURES), dtype=np.float32)),
    )


def public_outputs(size: str) -> dict[str, Tensor]:
    """The public code's outputs for one head size."""
    from action_model.action_model import ActionModel

    kind = {"small": "DiT-S", "base": "DiT-B", "large": "DiT-L"}[size]
    model = ActionModel(FEATURES, kind, in_channels=7, future_action_window_size=15, past_action_window_size=0).eval()
    net = model.net
    seeded_weights(net, WEIGHT_SEED)
    noise, cognition = inputs()
    z = cognition[:, None]
    uncondition = net.z_embedder.uncondition[None]
    both = {"z": torch.cat((z, uncondition)), "cfg_scale": 1.5}
    loop = {"clip_denoised": False, "progress": False, "device": "cpu"}
    outputs = {"noise": net(noise, torch.tensor([37]), z)}
    ddim = model.create_ddim(ddim_step=10)
    outputs["ddim"] = ddim.ddim_sample_loop(net.forward, noise.shape, noise, model_kwargs={"z": z}, eta=0.0, **loop)
    twice = torch.cat((noise, noise))
    guided = ddim.ddim_sample_loop(net.forward_with_cfg, twice.shape, twice, model_kwargs=both, eta=0.0, **loop)
    outputs["ddim_guided"] = guided[:1]
    torch.manual_seed(STEP_SEED)
    outputs["ddpm"] = model.diffusion.p_sample_loop(net.forward, noise.shape, noise, model_kwargs={"z": z}, **loop)
    return outputs


def our_outputs(size: str) -> dict[str, Tensor]:
    """Ours, from the same seeds."""
    head = DiffusionTransformer(HEAD_SIZES[size], FEATURES).eval()
    seeded_weights(head, WEIGHT_SEED)
    noise, cognition = inputs()
    outputs = {"noise": head(noise, torch.tensor([37]), cognition)}
    configs = {
        "ddim": DiffusionConfig("ddim", 10, guidance=1.0),
        "ddim_guided": DiffusionConfig("ddim", 10, guidance=1.5),
        "ddpm": DiffusionConfig("ddpm", 100, guidance=1.0),
    }
    for name, config in configs.items():
        sampler = Sampler(config)
        predict = head.guided(cognition, sampler.timesteps, config.guidance)
        outputs[name] = sampler.sample(predict, noise, [torch.Generator().manual_seed(STEP_SEED)])
    return outputs


def tower_differences() -> dict[str, float]:
    """The towers at their published widths, cut to four blocks, against timm's own entry points."""
    import timm

    towers = {
        "dino": ("vit_large_patch14_reg4_dinov2.lvd142m", TowerConfig(1024, 4, 16, 4096, registers=4)),
        "siglip": ("vit_so400m_patch14_siglip_224", TowerConfig(1152, 4, 16, 4304)),
    }
    ours = VisionTowers(VisionConfig(towers["dino"][1], towers["siglip"][1])).eval()
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8))
    stored, expected = {}, []
    for name, (entry, config) in towers.items():
        reference = timm.create_model(entry, pretrained=False, num_classes=0, img_size=224, depth=config.depth).eval()
        seeded_weights(reference, 5)
        stored |= {f"{name}_featurizer.{key}": value for key, value in reference.state_dict().items()}
        mean, std = {
            "dino": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        }[name]
        pixels = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        expected.append(reference.get_intermediate_layers(pixels, n={config.depth - 2})[0])
    state = {}
    for key, value in ours.state_dict().items():
        source = source_of("vision." + key)
        state[key] = torch.zeros_like(value) if source.part == "absent" else source.read(stored[source.key])
    ours.load_state_dict(state)
    got = ours(image)[0].split([1024, 1152], dim=-1)
    return {
        f"tower_{name}_relative": float((a - b).abs().max() / b.abs().max())
        for name, a, b in zip(towers, got, expected, strict=True)
    }


def main() -> None:
    """Compares, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cogact", type=Path, required=True, help="checkout of github.com/microsoft/CogACT")
    sys.path.insert(0, str(parser.parse_args().cogact))
    results: dict[str, float] = {}
    with torch.inference_mode():
        for size in HEAD_SIZES:
            public, ours = public_outputs(size), our_outputs(size)
            for name, value in public.items():
                difference = float((value - ours[name]).abs().max() / value.abs().max())
                results[f"head_{size}_{name}_relative"] = difference
            if size == "small":
                seeds = {"weights": WEIGHT_SEED, "inputs": INPUT_SEED, "steps": STEP_SEED}
                values = {name: value[0].double().numpy().tolist() for name, value in public.items()}
                GOLDEN.write_text(json.dumps({"size": size, "seeds": seeds, **values}) + "\n")
        results |= tower_differences()
    for name, value in results.items():
        print(f"{name:36} {value:.2e}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
