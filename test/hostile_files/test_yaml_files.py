"""YAML files that people write are read with limits: whatever they hold, the answer is a value or one ValueError."""

import pytest

from sqap_vla_ros.yaml_files import read_yaml

TENFOLD = "- &{} [*{}, *{}, *{}, *{}, *{}, *{}, *{}, *{}, *{}, *{}]\n"
BOMB = "- &a [0]\n" + "".join(
    TENFOLD.format(name, *[before] * 10) for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_plain_values_with_aliases(tmp_path, encoding):
    path = tmp_path / "x.yaml"
    path.write_text("a: &one {b: [1, 2.5, é]}\nc: *one\n", encoding=encoding)
    assert read_yaml(path) == {"a": {"b": [1, 2.5, "é"]}, "c": {"b": [1, 2.5, "é"]}}
    path.write_text("")
    assert read_yaml(path) is None


def test_a_key_that_is_given_twice_is_refused_and_one_that_replaces_a_merged_one_is_not(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("base: &base {x: 1, y: 1}\na: &a {<<: *base, x: 2}\nb: {<<: *a, x: 3, '1': 0, 1: 0}\n")
    assert read_yaml(path)["b"] == {"x": 3, "y": 1, "1": 0, 1: 0}
    path.write_text("a:\n  x: 1\n  y: 2\n  x: 3\n")
    for several in (False, True):
        with pytest.raises(ValueError, match=r"x\.yaml is not valid YAML: x is given twice in .*line 4"):
            read_yaml(path, first_of_several=several)


def test_the_first_of_several_documents(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\n---\na: 2\n---\n")
    assert read_yaml(path, first_of_several=True) == {"a": 1}
    with pytest.raises(ValueError, match="expected a single document"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("!!bool maybe", "is not valid YAML: KeyError"),
        ("!!timestamp x", "is not valid YAML: AttributeError"),
        ("!!int ''", "is not valid YAML: IndexError"),
        ("2001-99-99", "is not valid YAML: ValueError: month must be in 1..12"),
        ("9" * 5000, "is not valid YAML: ValueError: Exceeds the limit"),
        ("[" * 2000, "is not valid YAML: RecursionError"),
        ("0x" + "f" * 5000, "has a whole number of more than 1000 bits"),
        ("&a [*a]", "stands for more than 2097152 values"),
        (BOMB, "stands for more than 2097152 values"),
        ("x" * 5_000_000, "is larger than 4096 KiB"),
    ],
)
def test_what_is_hostile_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml {said}"):
        read_yaml(path)
