"""Unfinished compressions that lost a file or hold another's: refused, and never built into a whole file."""

import shutil

import pytest
from fuzzing.unfinished import compress_again, unfinished_compression

from sqap_vla_ros.compression.files.storage import CompressedFileError


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return unfinished_compression(tmp_path_factory.mktemp("begun"), "qvla")[0]


def missing(work, name):
    (work / name).unlink()


def exchanged(work, name, other):
    shutil.copy(work / other, work / name)


@pytest.mark.parametrize(
    ("damage", "names", "said"),
    [
        (missing, ("plan.json",), "plan.json is missing, so it is unknown whose work this is"),
        (missing, ("hessian_001_o_proj.safetensors",), "lacks the Hessian of 001_o_proj"),
        (exchanged, ("row_bits.safetensors", "layer_000.safetensors"), "row_bits.safetensors holds no plan"),
        (exchanged, ("layer_000.safetensors", "inputs_001.safetensors"), "holds 0 of another layer"),
        (exchanged, ("inputs_001.safetensors", "row_bits.safetensors"), "has no tensor 0: its content is another's"),
        (
            exchanged,
            ("hessian_001_q_proj.safetensors", "hessian_001_o_proj.safetensors"),
            "has no tensor 001_q_proj: its content is another's",
        ),
    ],
)
def test_it_is_refused_with_the_remedy(begun, tmp_path, damage, names, said):
    out = tmp_path / "policy.safetensors"
    work = shutil.copytree(begun, tmp_path / (out.name + ".partial"))
    damage(work, *names)
    with pytest.raises(CompressedFileError, match=f"{said}; remove {work} and start again"):
        compress_again(begun.parent, "qvla", out)
    assert not out.exists()
