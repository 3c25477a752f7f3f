import copy
import dataclasses

import pytest
import torch
from torch import nn

from sqap_vla_ros.quantization.backends import compiled, table
from sqap_vla_ros.quantization.backends.cpu import library
from sqap_vla_ros.quantization.backends.product import BackendError, SeparateProducts, split_rows
from sqap_vla_ros.quantization.backends.table import BACKENDS, FALLBACK, Backend, find_backend
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, inputs: int) -> QuantizedLinear:
    quantizer = ActivationQuantizer(4, clip=0.9, rotation=OrthogonalMix(inputs))
    weight = PackedWeight.of(quantize_weight(random(outputs, inputs, seed=1), 4))
    return QuantizedLinear(weight, quantizer, random(outputs, seed=2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_backend_gives_the_same_layer_to_the_last_bit(backend, dtype):
    if reason := backend.unsupported(CPU):
        pytest.skip(f"backend {backend.name}: {reason}")
    plain = linear(320, 4096)
    layer = copy.deepcopy(plain)
    assert use_backend(layer, backend.name, fused=False) == backend
    assert layer.backend == backend.name
    assert (layer.weight is not None) == backend.keeps_packed
    x = random(2, 150, 4096, seed=5).to(dtype)
    assert torch.equal(layer(x), plain(x))


class HalvesProduct(SeparateProducts):
    """A backend of the test's own: the two halves of the input channels, one after the other."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, row_bits: torch.Tensor | None) -> None:
        self.halves, self.scale = weight.double().chunk(2, dim=1), scale

    def unscaled(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        parts = zip(values.double().chunk(2, dim=1), self.halves, strict=True)
        return (sum(x @ half.t() for x, half in parts).float() * self.scale).to(dtype)

    def __call__(self, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.unscaled(values, scale.dtype) * scale


def test_a_new_backend_is_one_class_and_one_row(monkeypatch):
    row = Backend("halves", HalvesProduct, lambda device: "" if device.type == "cpu" else "it runs on the CPU")
    monkeypatch.setattr(table, "BACKENDS", (row, *BACKENDS))
    layer, x = linear(24, 64), random(3, 64, seed=5)
    expected = layer(x)
    assert use_backend(nn.Sequential(layer)) == row  # the fastest comes first
    assert isinstance(layer.product, HalvesProduct)
    assert layer.weight is None
    assert torch.equal(layer(x), expected)
    with pytest.raises(BackendError, match=r"halves cannot run here: it runs on the CPU; use backend auto \(here: ref"):
        find_backend("halves", torch.device("meta"))


def test_a_row_behind_the_others_changes_nothing(monkeypatch):
    """Layers start with the reference, and `auto` still prefers the rows before."""
    row = Backend("halves", HalvesProduct, lambda device: "")
    monkeypatch.setattr(table, "BACKENDS", (*BACKENDS, row))
    assert FALLBACK in BACKENDS
    assert linear(4, 8).backend == FALLBACK.name == "reference"
    assert find_backend("auto", CPU) in BACKENDS


def test_errors_say_what_is_possible(monkeypatch):
    names = ", ".join(backend.name for backend in BACKENDS)
    with pytest.raises(BackendError, match=f"no backend named 'cuda'; there are: auto, {names}"):
        find_backend("cuda", CPU)
    model = nn.Sequential(linear(4, 8))
    monkeypatch.setattr(library, "cpu_unsupported", lambda unit: f"no {unit.name}")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert find_backend("auto", CPU) == FALLBACK
    with pytest.raises(
        BackendError, match="triton cannot run here: it runs on CUDA devices, and the weights are on cpu"
    ):
        use_backend(model, "triton")
    with pytest.raises(BackendError, match=r"neither AVX512-VNNI nor AMX.*use backend auto \(here: reference\)"):
        use_backend(model, "onednn")
    with pytest.raises(BackendError, match="amx cannot run here: no amx"):
        use_backend(model, "amx")
    assert model[0].backend == FALLBACK.name


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_cpu_backends_refuse_other_devices(device):
    for name in ("amx", "vnni", "avx_vnni", "onednn", "avx2", "i8mm", "dotprod", "neon"):
        with pytest.raises(BackendError, match=f"{name} cannot run here: it runs on the CPU, and the weights are on"):
            find_backend(name, torch.device(device))


def test_the_kernel_for_activations_is_used_where_it_pays_or_is_asked_for(monkeypatch):
    def kernel(x, bits, clip, rms_eps):
        raise NotImplementedError

    row = dataclasses.replace(
        FALLBACK, name="wide", keeps_packed=False, token_quantizer=lambda: kernel, token_quantizer_from=64
    )
    monkeypatch.setattr(table, "BACKENDS", (row, FALLBACK))
    for inputs, fused, expected in ((32, None, None), (64, None, kernel), (32, True, kernel), (64, False, None)):
        layer = linear(4, inputs)
        use_backend(layer, "wide", fused=fused)
        assert layer.activation.token_quantizer is expected


def test_a_kernel_that_cannot_be_compiled_is_refused_only_when_asked_for(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    compiled.compilation_unavailable.cache_clear()
    try:
        layer = linear(4, 8)
        with pytest.raises(BackendError, match=r"cannot be compiled here: there is no C\+\+ compiler"):
            use_backend(nn.Sequential(layer), FALLBACK.name, fused=True)
        monkeypatch.setattr(table, "BACKENDS", (dataclasses.replace(FALLBACK, token_quantizer_from=0),))
        use_backend(layer)
        assert layer.activation.token_quantizer is None
    finally:
        compiled.compilation_unavailable.cache_clear()


@pytest.mark.parametrize(
    ("rows", "sizes"), [(0, [0]), (1, [1]), (256, [256]), (257, [144, 113]), (277, [144, 133]), (600, [208, 208, 184])]
)
def test_rows_are_split_evenly(rows, sizes):
    parts = split_rows(rows)
    assert [len(range(rows)[part]) for part in parts] == sizes
    assert [i for part in parts for i in range(rows)[part]] == list(range(rows))
