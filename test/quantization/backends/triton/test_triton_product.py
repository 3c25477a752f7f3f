import copy
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from backend_cases import allow_triton_on_the_cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from sqap_vla_ros.quantization.backends import compiled
from sqap_vla_ros.quantization.backends import product as products
from sqap_vla_ros.quantization.backends.product import split_rows
from sqap_vla_ros.quantization.backends.reference import ReferenceProduct
from sqap_vla_ros.quantization.layer_fusion import IntegerMlp
from sqap_vla_ros.quantization.linear import ActivationQuantizer, QuantizedLinear, use_backend
from sqap_vla_ros.quantization.packing import PackedWeight
from sqap_vla_ros.quantization.quantizers import quantize_weight
from sqap_vla_ros.quantization.rotations import OrthogonalMix

pytest.importorskip("triton", reason="backend triton: triton is not installed")
from sqap_vla_ros.quantization.backends.triton import activations, tiles
from sqap_vla_ros.quantization.backends.triton import product as triton_product
from sqap_vla_ros.quantization.backends.triton.product import TritonProduct
from sqap_vla_ros.quantization.backends.triton.sums import HIGH, LOW, QUARTERS, pack_parts
from sqap_vla_ros.quantization.backends.triton.tiles import TILES, tile_for

pytestmark = pytest.mark.usefixtures("rounding_interpreter")
slowly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def integers(*shape: int, bits: int, seed: int) -> torch.Tensor:
    top = 2 ** (bits - 1) - 1
    return torch.randint(-top, top + 1, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def uniform(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.5


@given(
    m=st.sampled_from([1, 2, 63, 64, 65, 130]),
    k=st.sampled_from([1, 2, 3, 43, 64, 129, 256, 515]),
    n=st.sampled_from([1, 17, 64, 70]),
    bits=st.sampled_from([4, 8]),
    activation_bits=st.sampled_from([4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    extreme=st.booleans(),
    tile=st.sampled_from(TILES),
)
@slowly
def test_every_tile_equals_the_reference_to_the_last_bit(m, k, n, bits, activation_bits, dtype, extreme, tile):
    values, weight = integers(m, k, bits=activation_bits, seed=m + k), integers(n, k, bits=bits, seed=n)
    weight[0, 0] = -(2 ** (bits - 1) - 1)
    if extreme:  # the largest sums there are
        values.fill_(2 ** (activation_bits - 1) - 1)
        weight.fill_(-(2 ** (bits - 1) - 1))
    scale, token_scale = uniform(n, seed=1), uniform(m, 1, seed=2).to(dtype)
    reference, kernel = ReferenceProduct(weight, scale), TritonProduct(weight, scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILES", (tile,))
        assert torch.equal(kernel.accumulate(values), reference.accumulate(values))
        assert torch.equal(kernel(values, token_scale), reference(values, token_scale))
    assert kernel.weight.numel() == (n * -(-k // 2) if bits == 4 else n * k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(4, 4), (4, 8), (8, 4)])
def test_gate_and_up_are_one_product(dtype, widths):
    values, token_scale = integers(70, 65, bits=4, seed=0), uniform(70, 1, seed=1).to(dtype)
    pair = [(integers(33, 65, bits=bits, seed=bits), uniform(33, seed=bits) / 50) for bits in widths]
    gate, up = (TritonProduct(*prepared) for prepared in pair)
    plain_gate, plain_up = (ReferenceProduct(*prepared).unscaled(values, dtype).double() for prepared in pair)
    wide = token_scale.double()
    expected = torch.nn.functional.silu(plain_gate * wide) * (plain_up * wide)
    actual = gate.gated(up, values, token_scale)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 2e-6, atol=1e-6)


def test_packed_parts_hold_every_value():
    weight = integers(5, 9, bits=4, seed=0)
    packed = pack_parts(weight, 4)
    assert packed.shape == (5, 5)
    low, high = (packed << 4).view(torch.int8) >> 4, packed.view(torch.int8) >> 4
    assert torch.equal(torch.cat([low, high], 1)[:, :9], weight)
    assert not high[:, 4].any()
    odd = 2 * torch.randint(-2, 2, (5, 9), generator=torch.Generator().manual_seed(0)).to(torch.int8) + 1
    packed = pack_parts(odd, 2)
    assert packed.shape == (5, 3)
    quarters = [(packed << (6 - 2 * part)).view(torch.int8) >> 6 for part in range(4)]
    assert torch.equal(torch.cat(quarters, 1)[:, :9] * 2 + 1, odd)


def test_the_assembly_says_what_the_interpreter_computes():
    """The interpreter cannot run PTX; this reads its three instructions for it."""

    def run(assembly: str, word: int) -> int:
        registers = {"$1": word}
        for instruction in filter(None, (part.strip() for part in assembly.split(";"))):
            name, target, source, constant = re.fullmatch(r"(\S+) (\S+), (\S+), (\S+)", instruction).groups()
            by = int(constant, 0)
            result = {"shl.b32": int.__lshift__, "and.b32": int.__and__, "or.b32": int.__or__}[name](
                registers[source], by
            )
            registers[target] = result & 0xFFFFFFFF
        return registers["$0"]

    packed = torch.randint(0, 256, (400,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    words = packed.view(torch.int32).tolist()
    pairs = [(LOW, packed << 4), (HIGH, packed & 0xF0)]
    pairs += [(quarter, ((packed << 6 - 2 * part) & 0xC0) | 0x20) for part, quarter in enumerate(QUARTERS)]
    for assembly, expected in pairs:
        found = b"".join(run(assembly.value, word & 0xFFFFFFFF).to_bytes(4, sys.byteorder) for word in words)
        assert found == expected.numpy().tobytes()


def layer(inputs: int, outputs: int, quantizer: ActivationQuantizer, seed: int = 0) -> QuantizedLinear:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * inputs**-0.5
    return QuantizedLinear(PackedWeight.of(quantize_weight(weight, 4)), quantizer)


@pytest.fixture
def triton_on_the_cpu(monkeypatch):
    allow_triton_on_the_cpu(monkeypatch)


def mlp(width: int = 48, inner: int = 72) -> IntegerMlp:
    shared = ActivationQuantizer(4, clip=0.9, consumers=2)
    shared.rms_eps = 1e-5
    down = ActivationQuantizer(4, clip=0.85, rotation=OrthogonalMix(inner))
    gate, up = (layer(width, inner, shared, seed) for seed in (1, 2))
    return IntegerMlp(gate, up, layer(inner, width, down, 3))


@pytest.mark.usefixtures("triton_on_the_cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_a_layer_equals_the_reference_backend_to_the_last_bit(dtype, granularity):
    quantizer = ActivationQuantizer(4, clip=0.9, rotation=OrthogonalMix(96), granularity=granularity)
    reference = layer(96, 40, quantizer)
    kernel = copy.deepcopy(reference)
    assert use_backend(kernel, "triton").name == "triton"
    assert kernel.activation.token_quantizer is activations.quantize_tokens
    assert kernel.weight is None
    for tokens in (1, 7, 70):
        x = torch.randn(1, tokens, 96, generator=torch.Generator().manual_seed(tokens)).to(dtype)
        assert torch.equal(kernel(x), reference(x))
    use_backend(kernel, "triton", fused=False)
    assert kernel.activation.token_quantizer is None


@pytest.mark.usefixtures("triton_on_the_cpu")
def test_an_mlp_is_two_quantisers_and_two_products(monkeypatch):
    reference, kernel = mlp(), mlp()
    use_backend(kernel, "triton")
    launched = []
    for module, name in ((activations, "_quantize_kernel"), (triton_product, "_product_kernel")):
        inner = getattr(module, name)

        class Counted:
            def __getitem__(self, grid, inner=inner, name=name):
                launched.append(name)
                return inner[grid]

        monkeypatch.setattr(module, name, Counted())
    monkeypatch.setattr(products, "gated", compiled._gated)  # the formula without its compilation
    x = torch.randn(1, 300, 48, generator=torch.Generator().manual_seed(5))
    expected, actual = reference(x), kernel(x)
    assert launched == ["_quantize_kernel", "_product_kernel"] * 2  # also for more rows than oneDNN takes at once
    assert len(split_rows(300)) == 2
    # a last bit of the sigmoid or of a norm's sum moves an integer of down's input now and then
    assert (actual - expected).norm() < 0.02 * expected.norm()


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("triton_on_the_cpu")
def test_a_layer_can_be_captured(monkeypatch):
    """Between the kernels there is nothing that waits for the device or copies from the host."""

    class Launched:
        def __getitem__(self, grid):
            return lambda *arguments, **options: None

    kernel = mlp()
    use_backend(kernel, "triton")
    x = torch.randn(1, 5, 48).bfloat16()
    kernel(x)  # the rotation's factors are copied to the device once
    monkeypatch.setattr(activations, "_quantize_kernel", Launched())
    monkeypatch.setattr(triton_product, "_product_kernel", Launched())
    with Recorder() as recorder:
        kernel(x)
    assert any("empty" in name for name in recorder.seen)
    forbidden = re.compile(r"local_scalar|nonzero|_to_copy|copy_|lift|scalar_tensor|item")
    assert not [name for name in recorder.seen if forbidden.search(name)]


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """The tiles that were timed on a stand-in for a GPU, the third of which is the quickest."""
    timed = []

    def milliseconds(work):
        work()
        return {TILES[2]: 1.0}.get(timed[-1], float("inf") if timed[-1] == TILES[0] else 2.0)

    monkeypatch.setattr(tiles, "milliseconds", milliseconds)
    monkeypatch.setattr(tiles, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA Something 80GB/HBM")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return timed


def test_the_quickest_tile_is_chosen_once(timed, monkeypatch):
    gpu = torch.device("cuda")
    assert tile_for(175, ("a",), gpu, timed.append) == TILES[2]
    assert timed == list(TILES)
    assert tile_for(190, ("a",), gpu, timed.append) == TILES[2]  # three tiles of 64 rows either way
    assert timed == list(TILES)
    tile_for(277, ("a",), gpu, timed.append)
    assert len(timed) == 2 * len(TILES)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tile_for(1, ("a",), gpu, timed.append) == TILES[0]  # nothing is timed inside a graph
    assert tile_for(1, ("a",), torch.device("cpu"), timed.append) == TILES[0]
    assert len(timed) == 2 * len(TILES)


def test_a_choice_outlives_the_process(timed, monkeypatch, caplog, tmp_path):
    gpu = torch.device("cuda")
    tile_for(175, (4096, 11008, 4), gpu, timed.append)
    tile_for(175, ("mixed", 4096, 99), gpu, timed.append)
    (file,) = (tmp_path / "sqap_vla_ros" / "tiles").iterdir()  # and nothing half-written beside it
    assert file.name.startswith(f"NVIDIA-Something-80GB-HBM_triton-{tiles.triton.__version__}_")
    timed.clear()
    tiles._chosen.clear()  # another process
    caplog.set_level("INFO")
    assert tile_for(190, (4096, 11008, 4), gpu, timed.append) is TILES[2]
    assert "product (4096, 11008, 4), up to 192 rows: Tile(m=64, n=128, k=64, warps=8, stages=4)" in caplog.text
    assert not timed
    tile_for(277, (4096, 11008, 4), gpu, timed.append)
    assert timed == list(TILES)  # more rows are another choice
    tiles._chosen.clear()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA Other")
    tile_for(175, (4096, 11008, 4), gpu, timed.append)
    assert len(timed) == 2 * len(TILES)


ONE = "3 ('a',)"  # what `tile_for(175, ("a",), ...)` is kept as


@pytest.mark.parametrize(
    "damaged",
    ["", "{", "[]", "null", "\x00", *(json.dumps({ONE: value}) for value in (7, [1, 2, 3, 4, 5], {"m": 64}, None))],
)
def test_a_damaged_file_of_choices_is_timed_anew_and_mended(timed, damaged):
    gpu = torch.device("cuda")
    file = tiles.kept_file(gpu)
    file.parent.mkdir(parents=True)
    file.write_text(damaged)
    assert tile_for(175, ("a",), gpu, timed.append) == TILES[2]
    assert timed == list(TILES)
    assert tiles.kept(file) == {ONE: TILES[2]}


def test_where_nothing_can_be_written_a_choice_lasts_as_long_as_the_process(timed, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert tile_for(175, ("a",), torch.device("cuda"), timed.append) == TILES[2]
    assert timed == list(TILES)


def test_a_single_candidate_is_neither_timed_nor_kept(timed, monkeypatch):
    monkeypatch.setattr(tiles, "TILES", TILES[:1])
    assert tile_for(175, ("a",), torch.device("cuda"), timed.append) == TILES[0]
    assert not timed
    assert not tiles.kept_file(torch.device("cuda")).exists()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sqap_vla_ros.quantization.backends.triton.activations import _quantize_kernel
from sqap_vla_ros.quantization.backends.triton.mixed import _mixed_kernel
from sqap_vla_ros.quantization.backends.triton.product import _product_kernel
from sqap_vla_ros.quantization.backends.triton.tiles import TILES

def compiled(kernel, types, constants, architecture, **options):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    whole = set(types) - {"rows", "ratio", "rms_eps"}  # multiples of 16, as in the 7B decoder
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in whole}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=dict(options, enable_fp_fusion=False))

pointers = dict(x_ptr="*i8", x_scale_ptr="*bf16", w_ptr="*u8", w_scale_ptr="*fp32")
pointers |= dict(up_ptr="*u8", up_scale_ptr="*fp32", out_ptr="*bf16")
sizes = dict.fromkeys(("rows", "outputs"), "i32")
for architecture, tiles in ((90, TILES), (80, TILES[:1])):
    for tile in tiles:
        constants = dict(INPUTS=4096, BITS=4, UP_BITS=4, SCALED=True, GATED=True, ASSEMBLY=True)
        constants |= dict(BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k)
        options = dict(num_warps=tile.warps, num_stages=tile.stages)
        kernel = compiled(_product_kernel, pointers | sizes, constants, architecture, **options)
        ptx = kernel.asm["ptx"]
        print("product", architecture, kernel.metadata.shared, ptx.count("wgmma.mma_async"), ptx.count("mma.sync"))
        if tile not in (TILES[0], TILES[-1]):  # what does not fit is not chosen; the first must fit
            continue
        types = pointers | sizes | dict(column_ptr="*i32", tile_ptr="*i32")
        types = {name: types[name] for name in _mixed_kernel.arg_names if name in types}
        constants = dict(INPUTS=4096, FIELDS=4, ALIGNED=16, SCALED=True, ASSEMBLY=True)
        constants |= dict(BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k)
        kernel = compiled(_mixed_kernel, types, constants, architecture, **options)
        ptx = kernel.asm["ptx"]
        print("product", architecture, kernel.metadata.shared, ptx.count("wgmma.mma_async"), ptx.count("mma.sync"))
for columns in (4096, 11008):
    block = triton.next_power_of_2(columns)
    types = dict(x_ptr="*bf16", values_ptr="*i8", scale_ptr="*bf16", columns="i32", ratio="fp32", rms_eps="fp32")
    constants = dict(TOP=7, SMALLEST=1e-12, NORMALISED=True, BLOCK=block)
    ptx = compiled(_quantize_kernel, types, constants, 90, num_warps=block // 1024).asm["ptx"]
    print("quantize", ptx.count("ld.global.v4"), ptx.count("div.rn"), ptx.count("fma"))
"""


def test_kernels_compile_for_gpus(tmp_path):
    """To machine code, which needs no GPU: int8 tensor cores, shared memory that a Hopper has, loads of 16 bytes."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr[-2000:]
    lines = [line.split() for line in run.stdout.splitlines()]
    products = [list(map(int, numbers)) for kind, *numbers in lines if kind == "product"]
    assert len(products) == len(TILES) + 1 + 3
    for architecture, shared, hopper, ampere in products:
        assert (hopper if architecture == 90 else ampere) > 0
        assert shared <= (227 if architecture == 90 else 163) * 1024
    quantizers = [list(map(int, numbers)) for kind, *numbers in lines if kind == "quantize"]
    assert quantizers
    assert all(loads and divisions == 2 and not fused for loads, divisions, fused in quantizers)


def test_a_tile_is_what_the_kernel_takes():
    for tile in TILES:
        assert not any(size & (size - 1) for size in (tile.m, tile.n, tile.k, tile.warps))  # powers of two
