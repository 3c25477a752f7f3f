"""An option that was typed and has no effect is said, with the reason; one that was left to its default is not."""

import argparse
from types import SimpleNamespace

import pytest

from sqap_vla_ros import cli
from sqap_vla_ros.commands import compress, evaluate, ignored, serve
from sqap_vla_ros.commands.options import CommandParser
from sqap_vla_ros.commands.recordings import bags, datasets, record_demo, replay
from sqap_vla_ros.compression.recipe import load_recipe

NO_BAG = "ignored: there is no bag among the recordings"
NO_DATASET = "ignored: there is no LeRobot dataset among the recordings"
NO_CAMERA = "--mirrored is ignored: without a camera no tool is projected"
SERVED = "ws://127.0.0.1:9"


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A bag and a dataset, by what they are told from."""
    monkeypatch.chdir(tmp_path)
    for file in ("bag/metadata.yaml", "dataset/meta/info.json", "pictures/instructions.txt"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()


def parse(*arguments: str) -> argparse.Namespace:
    return cli.build_parser().parse_args(arguments)


def check(notes: list[str], said: list[str]) -> None:
    assert len(notes) == len(said), notes
    assert all(note.startswith(words) for note, words in zip(notes, said, strict=True)), notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["bag", "--urdf", "a.urdf", "--pose-topic", "/p"], ["--urdf is ignored: --pose-topic gives the tool's pose"]),
        (["bag", "--joint-topic", "/joint_states"], ["--joint-topic is ignored: it needs --urdf"]),
        (["bag", "--joint-topic", "/j", "--pose-topic", "/p"], ["--joint-topic is ignored: --pose-topic gives"]),
        (["bag", "--camera-info", "c.yaml", "--camera-info-topic", "/i"], ["--camera-info-topic is ignored: --camera"]),
        (["bag", "--segments", "s.yaml", "--instruction-topic", "/i"], ["--segments is ignored: --instruction-topic"]),
        (["bag", "--camera-info", "nearest:0.02", "--camera-info-topic", "/i"], []),
        (["bag", "--urdf", "a.urdf", "--joint-topic", "/joint_states"], []),
        (["bag", "--jobs", "2"], ["--jobs is ignored: there is one bag"]),
        (["bag", "other", "--jobs", "2", "--ray", "local"], ["--jobs is ignored: --ray distributes the bags"]),
        (["bag", "--episodes", "0", "--action-space", "metric"], [f"--action-space, --episodes are {NO_DATASET}"]),
        (["bag", "--mirrored"], ["--mirrored is ignored: a bag brings its camera"]),
        (["dataset", "--image-topic", "/i"], [f"--image-topic is {NO_BAG}"]),
        (["dataset", "--tool-frame", "tool0", "--rectified"], [f"--rectified, --tool-frame are {NO_BAG}"]),
        (["dataset", "--camera-info", "c.yaml"], []),
        (["dataset", "--state", "rpy", "--state-key", "none"], ["--state is ignored: --state-key none reads no state"]),
        (["dataset", "--action-space", "libero", "--action-key", "none"], ["--action-space is ignored: --action-key"]),
        (["dataset", "--mirrored"], [NO_CAMERA]),
        (["dataset", "--mirrored", "--simulator-camera", "c.json"], []),
        (["bag", "dataset", "--image-topic", "/i", "--image-key", "k"], []),
        (["bag", "--checkpoint", SERVED, "--device", "cpu", "--ema"], ["--ema, --device are ignored: the server has"]),
        (["bag"], []),
        (["dataset"], []),
    ],
)
def test_replay(recordings, options, said):
    check(replay.ignored_options(parse("replay", *options)), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["bag", "--image-topic", "/i", "--instruction", "pick"], []),
        (["bag", "--image-key", "k"], ["--image-key is ignored: --calibration names no LeRobot dataset"]),
        (["bag", "--joint-topic", "/j"], ["--joint-topic is ignored: it needs --urdf"]),
        (["dataset", "--image-key", "k", "--instruction", "pick"], []),
        (["dataset", "--camera-info", "c.yaml"], ["--camera-info is ignored: --calibration names no bag"]),
        (["pictures", "--instruction", "pick"], ["--instruction is ignored: --calibration names no recording"]),
        (["synthetic:8", "--observations", "4"], ["--observations is ignored: --calibration says how many"]),
        (["synthetic", "--observations", "4"], []),
        (["synthetic", "--recipe", "fp32"], ["--calibration is ignored: recipe fp32 looks at no observations"]),
        (["synthetic", "--recipe", "fp32", "--report", "r"], []),
    ],
)
def test_compress(recordings, options, said):
    found = parse("compress", "--checkpoint", "micro", "--out", "a.safetensors", "--calibration", *options)
    check(compress.ignored_options(found, load_recipe(found.recipe)), said)


def test_compress_without_calibration():
    found = parse("compress", "--checkpoint", "micro", "--out", "a.safetensors", "--observations", "16", "--urdf", "u")
    check(
        compress.ignored_options(found, load_recipe(found.recipe)),
        ["--urdf is ignored: --calibration names no bag", "--observations is ignored: there is no --calibration"],
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--join", "path"], ["--join is ignored: without --async-latency no chunk is late"]),
        (["--join", "clock", "--async-latency", "0.4"], []),
        (["--jobs", "1", "--ray", "auto"], ["--jobs is ignored: --ray distributes the episodes"]),
    ],
)
def test_evaluate(options, said):
    check(evaluate.ignored_options(parse("evaluate", *options)), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mirrored"], [NO_CAMERA]),
        (["--mirrored", "--simulator-camera", "c.json"], []),
        (["--ensemble-chunks", "2"], ["--ensemble-chunks is ignored: without --ensemble nothing is averaged"]),
        (["--ensemble-chunks", "2", "--ensemble", "by_time"], []),
        (["--checkpoint", SERVED, "--dt", "0.1"], ["--dt is ignored: the server has loaded the policy already"]),
    ],
)
def test_serve(options, said):
    check(serve.ignored_options(parse("serve", *options)), said)


def test_record_demo(tmp_path, monkeypatch, capsys):
    for kind in ("bag", "lerobot"):
        monkeypatch.setitem(record_demo._FORMATS, kind, lambda args: [True])
        assert cli.main(["record-demo", str(tmp_path / "new"), "--format", kind, "--jpeg-quality", "90"]) == 0
        note = "note: --jpeg-quality is ignored: a dataset holds films"
        assert (note in capsys.readouterr().err) == (kind == "lerobot")


def test_a_recipe_that_a_server_has_chosen():
    typed, left = (
        parse("predict", "--image", "i", "--instruction", "x", "--checkpoint", SERVED, *more)
        for more in (["--recipe", "fp32"], [])
    )
    assert ignored.ignored_recipe(typed, "sqap") == ["--recipe fp32 is ignored: the server has chosen sqap"]
    assert ignored.ignored_recipe(typed, "fp32") == ignored.ignored_recipe(left, "sqap") == []


UNREADABLE = ("no-such-recipe", "missing.yaml", "x" * 5000, "")


@pytest.mark.parametrize("recipe", UNREADABLE)
def test_a_recipe_that_only_the_server_may_know(recipe):
    args = parse("predict", "--image", "i", "--instruction", "x", "--checkpoint", SERVED, "--recipe", recipe)
    assert ignored.ignored_recipe(args, "fp32+no-such-recipe") == (
        []
        if recipe == "no-such-recipe"
        else [f"--recipe {recipe} is ignored: the server has chosen fp32+no-such-recipe"]
    )


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "--image", "view.png", "--instruction", "pick"),
        ("serve",),
        ("replay", "bag", "--instruction", "pick"),
    ],
    ids=lambda command: command[0],
)
def test_what_the_server_has_chosen_is_not_looked_at_here(command, tmp_path, capsys, monkeypatch):
    """Each of these options is refused for a policy that would run here."""
    import torch
    from PIL import Image

    for library in ("msgpack", "websockets"):
        pytest.importorskip(library, reason=f"{library} is not installed (pip install 'sqap-vla-ros[serve]')")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60)).save("view.png")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def reached(*_, **__):
        raise ValueError("the server is asked")

    monkeypatch.setattr("sqap_vla_ros.serving.remote.RemotePolicy", reached)
    monkeypatch.setattr("sqap_vla_ros.commands.serve._serve", reached)
    monkeypatch.setattr(replay, "jobs_of", lambda args: [])
    monkeypatch.setattr("sqap_vla_ros.evaluation.replay.jobs.run_jobs", reached)
    recipes = "--recipes" if command[0] == "replay" else "--recipe"
    here = ("--device", "cuda", recipes, "no-such-recipe", "--tokenizer", "./nope", "--ddim-steps", "37")
    assert cli.main([*command, "--checkpoint", SERVED, *here, "--unnorm-key", "other", "--threads", "3"]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error == "sqap-vla: error: the server is asked"
    useless = (
        "--unnorm-key, --tokenizer, --ddim-steps, --device, --threads are ignored: the server has loaded the policy"
    )
    assert any(useless in note for note in notes)


@pytest.mark.parametrize(
    "command",
    [("demo",), ("compress", "--out", "a.safetensors"), ("inspect-tokens", "--image", "view.png")],
    ids=lambda command: command[0],
)
def test_a_command_that_needs_the_policy_here_takes_no_server(command, capsys):
    assert cli.main([*command, "--checkpoint", SERVED]) == 2
    said = capsys.readouterr().err
    assert f"--checkpoint {SERVED}: this needs the policy here, not a server's: give its folder or file\n" in said


def test_a_servers_weights_are_not_to_be_had(capsys):
    assert cli.main(["inspect", SERVED]) == 2
    assert f"checkpoint {SERVED} is a server's address, where no weights are to be had: give" in capsys.readouterr().err


def test_recipes_that_a_compressed_file_does_not_follow(tmp_path):
    packed = str(tmp_path / "packed.safetensors")
    assert cli.main(["compress", "--checkpoint", "micro", "--recipe", "rtn_w8a16", "--out", packed]) == 0
    args = parse("replay", "bag", "--checkpoint", packed, "--recipes", "bf16,rtn_w8a16,fastv")
    check(ignored.ignored_recipes(args), ["--recipes bf16 is ignored: the checkpoint is compressed as rtn_w8a16"])
    from sqap_vla_ros.compression.load import load_policy

    with pytest.raises(ValueError, match="is compressed, and its types of numbers with it"):
        load_policy(packed, "rtn_w8a16", dtype="float32")


def test_each_group_names_the_options_that_it_adds():
    for adders, names in (
        ((bags.add_bag_topics, bags.add_bag_frames), {*bags.BAG_OPTIONS, "--camera-info"}),
        ((datasets.add_dataset_features,), set(datasets.DATASET_OPTIONS)),
    ):
        added: list[str] = []
        group = SimpleNamespace(add_argument=lambda *options, added=added, **_: added.extend(options))
        for add in adders:
            add(group)
        assert set(added) == names


def test_what_was_typed_is_known_of_a_command_of_its_own_too():
    parser = CommandParser()
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--place", nargs=2)
    assert parser.parse_args([]).typed == frozenset()
    assert parser.parse_args(["--jobs", "1", "--place", "a", "b"]).typed == {"--jobs", "--place"}
    assert parser.parse_args(["--quiet"]).typed == {"--quiet"}
