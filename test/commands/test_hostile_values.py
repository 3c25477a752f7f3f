"""Whatever a user types for an option, the answer is a run or one line: never a traceback, never half a run."""

from pathlib import Path

import pytest
from bag_factory import write_bag
from command_lines.options import GIVEN, answer, options, parsers
from PIL import Image

from sqap_vla_ros import cli

HOSTILE = (
    *("", " ", "-1", "0", "-0.0", "1e400", "nan", "inf", "-inf", "1e-400", str(2**70), str(-(2**70)), "0x10", "1_000"),
    *(
        "true",
        "None",
        "[]",
        "{}",
        "a=b",
        "--",
        "-",
        "..",
        "/",
        "\u00e9\u4e2d",
        "\x1b[31m",
        "a" * 5000,
        "%s",
        "{0}",
        ",",
        ",,a",
    ),
    *("cuda:", "cuda:-1", "cpu:0", "nearest:", "nearest:x", "simulator:", "simulator:-1", "fp32,fp32", "\x00"),
)
WRITTEN = {"out", "output", "report", "picture"}  # options of type Path that name no file to read
READ_LATER = {"checkpoint", "tokenizer", "urdf"}  # by demo, serve and replay; check listens to a robot first
TEXTS_THAT_NAME_FILES = {"checkpoint", "recipe", "recipes", "camera_info", "calibration"}


@pytest.mark.parametrize(("command", "option", "count"), list(options()))
def test_any_value_of_any_option_is_parsed_or_refused(command, option, count, monkeypatch, capsys):
    module = next(m for m in cli.COMMANDS if m.__name__.endswith(f".{command.replace('-', '_')}") or _is(m, command))
    monkeypatch.setattr(module, "run", lambda args: 0)
    parser = cli.build_parser()
    monkeypatch.setattr(cli, "build_parser", lambda: parser)  # making it takes most of the time
    for value in HOSTILE:
        assert answer([command, *GIVEN.get(command, []), f"{option}={value}", *[value] * (count - 1)], capsys) in (0, 2)


def _is(module, command: str) -> bool:
    return command == "inspect-tokens" and module.__name__.endswith(".tokens")


@pytest.mark.parametrize("value", HOSTILE)
def test_commands_that_read_files_say_what_is_wrong_with_a_path(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["inspect", f"./{value}"],
        ["convert", f"./{value}", "out.safetensors"],
        ["predict", f"--image=./{value}", "--instruction", "x"],
        ["bops", f"--recipe=./{value}"],
        ["bops", f"--model={value}"],
        ["replay", f"./{value}", "--instruction", "x"],
        ["replay", "bag", f"--segments=./{value}"],
        ["replay", "bag", f"--urdf=./{value}"],
        ["replay", "bag", f"--camera-info={value or 'x'}"],
        ["evaluate", f"--recipes={value}"],
        ["compress", "--checkpoint", "micro", "--out", "x.safetensors", f"--calibration=./{value}"],
    ):
        assert answer(arguments, capsys) in (1, 2), arguments
    assert list(tmp_path.iterdir()) == [] or {path.name for path in tmp_path.iterdir()} <= {"out"}


def file_options():
    """Every option and argument that names a file to read, from the parsers: of type Path, or of a known name."""
    for name, parser in parsers():
        for action in parser._actions:
            is_path = action.type is Path or action.dest in TEXTS_THAT_NAME_FILES
            in_a_process = name == "check" or (name in ("demo", "serve", "replay") and action.dest in READ_LATER)
            if is_path and action.dest not in WRITTEN and not action.choices and not in_a_process:
                yield name, action


@pytest.fixture
def hostile_files(tmp_path, monkeypatch):
    """A folder to run in, with a good picture and recording, and files that nothing can be read from."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48)).save(tmp_path / "IMAGE.png")
    write_bag(tmp_path / "BAG", frames=1)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "empty.bag").write_bytes(b"")
    (tmp_path / "binary.safetensors").write_bytes(bytes(range(256)) * 9)
    (tmp_path / "tag.yaml").write_text("!!bool maybe")
    return {"missing.yaml", "folder.yaml", "empty.bag", "binary.safetensors", "tag.yaml"}


@pytest.mark.parametrize(("command", "action"), list(file_options()), ids=lambda value: getattr(value, "dest", value))
def test_any_file_that_is_read_is_refused_in_one_line(command, action, hostile_files, tmp_path, capsys):
    given = [part.replace("IMAGE", "IMAGE.png") for part in GIVEN.get(command, [])]
    for file in sorted(hostile_files):
        if action.option_strings:
            arguments = [command, *given, f"{action.option_strings[-1]}={file}"]
        else:
            arguments = [command, file, *given[1:]]
        assert answer(arguments, capsys) in (1, 2), arguments
    assert not (tmp_path / "OUT").exists()


def test_every_command_with_values_is_driven():
    names = {module.__name__.rpartition(".")[2].replace("_", "-") for module in cli.COMMANDS}
    driven = {name for name, _, _ in options()}
    assert driven == names - {"inspect", "tokens"} | {"inspect-tokens"}  # inspect takes a path and no values


UNFITTING = {  # a recipe that a decoder of few layers cannot take -> what is said about it
    "{extends: w4a8, pruning: {selector: sqap, parameters: {prune_layer: 99}}}": "before decoder layer 99; this model",
    "{accelerator: {name: efficient_vla, parameters: {removed_layers: [1, 99]}}}": "cannot remove layers [1, 99] of",
    "{accelerator: {name: efficient_vla, parameters: {remove: 99, selector: null}}}": "takes 99 layers out of a",
}


@pytest.mark.parametrize("recipe", UNFITTING)
def test_a_recipe_that_does_not_fit_the_decoder_is_refused_before_any_work(recipe, tmp_path, monkeypatch, capsys):
    """By every command that takes one; where several are named, before the first is run."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(recipe)
    Image.new("RGB", (64, 48)).save("view.png")
    write_bag(tmp_path / "bag", frames=1)
    monkeypatch.setattr("sqap_vla_ros.commands.demo.run_demo", lambda options: pytest.fail("a robot is started"))
    monkeypatch.setattr("sqap_vla_ros.compression.load.load_uncompressed", lambda *_, **__: pytest.fail("it is loaded"))
    given = ["--checkpoint", "tabletop"]
    for arguments in (
        ["evaluate", *given, "--recipes", "fp32,mine.yaml", "--episodes", "1"],
        ["replay", "bag", *given, "--recipes", "fp32,mine.yaml", "--instruction", "x"],
        ["predict", *given, "--recipe", "mine.yaml", "--image", "view.png", "--instruction", "x"],
        ["inspect-tokens", *given, "--recipe", "mine.yaml", "--image", "view.png"],
        ["compress", *given, "--recipe", "mine.yaml", "--calibration", "synthetic:4", "--out", "p.safetensors"],
        ["demo", *given, "--recipe", "mine.yaml"],
        ["bops", "--recipe", "mine.yaml", "--model", "tabletop"],
        ["bops", "--recipe", "mine.yaml"],
    ):
        assert cli.main(arguments) == 2, arguments
        said = capsys.readouterr().err
        assert said.startswith("sqap-vla: error: recipe 'mine'"), arguments
        assert UNFITTING[recipe] in said, arguments
        assert said.count("\n") == 1, arguments
    assert not list(tmp_path.rglob("*.jsonl"))
