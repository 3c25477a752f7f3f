"""What every sub-command takes for granted: values are checked, mistakes are one line, help tells defaults."""

import argparse
import contextlib
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from sqap_vla_ros import cli
from sqap_vla_ros.commands import options
from sqap_vla_ros.evaluation.ray_cluster import ray_cluster
from sqap_vla_ros.shipped import SHIPPED

IMAGE = ("--image", "nowhere.png", "--instruction", "pick up the can")
GUIDED = ("evaluate", "--continuation", "guided")
HOSTILE = [
    (("evaluate", "--jobs", "-1"), "--jobs: must be at least 1, got -1"),
    (("evaluate", "--jobs", "99999"), "--jobs: must be at most "),
    (("replay", "bag", "--jobs", "99999"), "--jobs: must be at most "),
    (("train", "--out", "x", "--jobs", "99999"), "--jobs: must be at most "),
    (("predict", *IMAGE, "--unnorm-key", ""), "--unnorm-key: needs a name, got ''"),
    (("evaluate", "--episodes", "99999999999"), "--episodes: must be at most 100000, got 99999999999"),
    (("operate", "status", "--node", "1abc"), "--node: must be a node's name such as /policy_node or /left/policy_"),
    (("operate", "status", "--node", "a//b"), "--node: must be a node's name"),
    (("evaluate", "--episodes", "many"), "--episodes: needs a whole number, got 'many'"),
    (("evaluate", "--horizon", "17"), "--horizon: must be at most 16, got 17"),
    (("evaluate", "--async-latency", "nan"), "--async-latency: needs a finite number, got 'nan'"),
    (("evaluate", "--async-latency", "1e9"), "--async-latency must be at most 1.6 s, the time that --horizon 8 lasts"),
    (("evaluate", "--recipes", ","), "--recipes: needs some names"),
    ((*GUIDED, "--async-latency", "0.8", "--recipes", "w4a8"), "guided: differentiates the action head, which recipe"),
    (GUIDED, "--continuation guided: without --async-latency no chunk is late"),
    ((*GUIDED, "--async-latency", "0.8", "--ensemble", "by_time"), "guided: goes without an ensemble, got --ensemble"),
    ((*GUIDED, "--async-latency", "0.8", "--checkpoint", "ws://localhost:1"), "guided: needs a policy in this process"),
    (("evaluate", "--ray", "nonsense"), "--ray: must be auto, local, HOST:PORT or ray://HOST:PORT, got 'nonsense'"),
    (("evaluate", "--ray", ""), "--ray: must be auto, local, HOST:PORT or ray://HOST:PORT, got ''"),
    (
        ("replay", "bag", "--ray", "http://a:8265"),
        "--ray: must be auto, local, HOST:PORT or ray://HOST:PORT, got 'http",
    ),
    (("replay", "bag", "--ray", "a:99999"), "--ray: must be auto, local, HOST:PORT or ray://HOST:PORT, got 'a:99999'"),
    (("replay", "bag", "--threads", "-1"), "--threads: must be at least 0, got -1"),
    (("predict", *IMAGE, "--threads", "1000000"), "--threads: must be at most 1024, got 1000000"),
    (("bops", "--text-tokens", "9" * 400), "--text-tokens: must be at most 1048576"),
    (("predict", *IMAGE, "--checkpoint", "ws://"), "--checkpoint ws://: no address of a server: ws://HOST:PORT"),
    (("predict", *IMAGE, "--checkpoint", "ws://a:99999"), "--checkpoint ws://a:99999: no address of a server"),
    (("predict", *IMAGE, "--checkpoint", "ws://nohost.invalid:1"), "--checkpoint ws://nohost.invalid:1: "),
    (("replay", "bag", "--checkpoint", "ws://nohost.invalid:1"), "--checkpoint ws://nohost.invalid:1: "),
    (("replay", "bag", "--seed", str(2**70)), "--seed: must be at most 4294967295, got 1180591620717411303424"),
    (("replay", "bag", "--dtype", "int3"), "--dtype: invalid choice: 'int3'"),
    (("replay", "bag", "--device", "gpu"), "--device: must be cpu, cuda or cuda:N, got 'gpu'"),
    (("compress", "--checkpoint", "micro", "--out", "x", "--observations", "0"), "--observations: must be at least 1"),
    (("compress", "--checkpoint", "micro", "--out", "x", "--observations", "-3"), "--observations: must be at least 1"),
    (("convert", "a", "b", "--dt", "0"), "--dt: must be at least 0.001, got 0.0"),
    (("predict", *IMAGE, "--seed", "-1"), "--seed: must be at least 0, got -1"),
    (("bops", "--text-tokens", "0"), "--text-tokens: must be at least 1, got 0"),
    (("train", "--out", "x", "--scale", "0"), "--scale: must be above 0, got 0"),
    (("train", "--out", "x", "--demonstrations", "nowhere"), "--demonstrations: nowhere holds no finished shards"),
    (("train", "--out", "x", "--demonstrations", "y", "--start", "z.safetensors"), "--start: z.safetensors does not"),
    (("train", "--out", "x", "--demonstrations", "y", "--start", "z"), "state.pt is missing: z is neither"),
    (("demo", "--task", "juggle"), "--task: invalid choice: 'juggle'"),
    (("record-demo", "x", "--jpeg-quality", "101"), "--jpeg-quality: must be at most 100, got 101"),
    (("predict", *IMAGE), "--image nowhere.png: no such file or directory"),
    (("predict", *IMAGE, "--checkpoint", ""), "--checkpoint: needs a name, got ''"),
    (("predict", *IMAGE, "--device", "cuda:" + "9" * 5000), "--device: must be cpu, cuda or cuda:N"),
    (("predict", *IMAGE, "--device", "cuda:\u0661"), "--device: must be cpu, cuda or cuda:N"),
    (("predict", *IMAGE, "--gripper-point", "nan", "0", "1"), "--gripper-point: needs a finite number, got 'nan'"),
    (("inspect", ""), "CHECKPOINT: needs a name, got ''"),
    (("replay", ""), "RECORDING: needs a name, got ''"),
    (("replay", "bag", "--out", ""), "--out: needs a name, got ''"),
    (("replay", "bag", "--urdf", "/nowhere"), "--urdf /nowhere: no such file or directory"),
    (("replay", "bag", "--urdf", "/tmp"), "--urdf /tmp: is a directory"),
    (("replay", "bag", "--camera-info", "/nowhere"), "--camera-info /nowhere: no such file or directory"),
    (("replay", "bag", "--camera-info", "nearest"), "--camera-info nearest: needs a number of seconds, such as"),
    (("replay", "bag", "--unnorm-key", "zzz"), "unnorm_key 'zzz' is not among them: choose one of them (--unnorm-key)"),
    (("replay", "bag", "--ddim-steps", "37"), "ddim_steps (--ddim-steps) must be at least 2 and a number of equal"),
    (("replay", "bag", "--out", "/dev/null"), "/dev/null is a file: choose another place"),
    (("replay", "bag", "--out", "/proc/x"), "folder /proc is not writable: choose another place for x"),
    (("evaluate", "--out", "/proc/x"), "folder /proc is not writable: choose another place for x"),
    (("train", "--out", "/proc/x"), "folder /proc is not writable: choose another place for x"),
    (("record-demo", "/proc/x"), "folder /proc is not writable: choose another place for x"),
    (("no-such-command",), "invalid choice: 'no-such-command'"),
]


@pytest.mark.parametrize(("arguments", "message"), HOSTILE, ids=lambda value: " ".join(value)[:40])
def test_a_bad_value_is_one_line_and_exit_status_2(arguments, message, capsys):
    assert cli.main(list(arguments)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("sqap-vla: error: ")
    assert message in line


@pytest.mark.parametrize("command", [("predict", *IMAGE), ("inspect-tokens", *IMAGE[:2]), ("train", "--out", "x")])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_loaded(command, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main([*command, "--device", "cuda"]) == 2
    assert "--device cuda: PyTorch sees no CUDA device here; use --device cpu" in capsys.readouterr().err


def test_a_driver_that_does_not_fit_is_said_too(capsys, monkeypatch):
    import torch

    def broken():
        raise RuntimeError("Error 804: forward compatibility\nwas attempted on non supported HW")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert cli.main(["predict", *IMAGE, "--device", "cuda"]) == 2
    expected = (
        "--device cuda: PyTorch cannot use the CUDA driver here (Error 804: forward compatibility); use --device cpu"
    )
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("command", [("evaluate",), ("replay", "bag", "--instruction", "pick")], ids=lambda c: c[0])
def test_a_ray_that_is_not_installed_is_said_before_anything_is_written(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([*command, "--ray", "local", "--out", str(tmp_path / "out")]) == 2
    assert "--ray needs Ray: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@contextlib.contextmanager
def one_answer(answer: bytes | None):
    """Provide the port of a server that answers a single connection; None closes its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if answer is not None:

            def serve():
                connection, _ = server.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)
                    connection.recv(100)

            threading.Thread(target=serve, daemon=True).start()
            yield port
            return
    yield port


RAY_COMMANDS = [("evaluate", "--checkpoint", "micro"), ("replay", "bag", "--instruction", "pick")]


@pytest.mark.parametrize("command", RAY_COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "no cluster answers there (Connection refused): start one with `ray start --head`, or use --ray local"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no Ray cluster: give the address that `ray start"),
        (b"", "what answers there is no Ray cluster"),
    ],
)
def test_an_address_without_a_cluster_is_said_at_once(command, scheme, answer, said, tmp_path, capsys, monkeypatch):
    """Ray itself tries for minutes."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("sqap_vla_ros.evaluation.ray_cluster._ANSWER_S", 0.5)
    began_s = time.monotonic()
    with one_answer(answer) as port:
        address = f"{scheme}127.0.0.1:{port}"
        assert cli.main([*command, "--ray", address, "--out", str(tmp_path / "out")]) == 2
    assert time.monotonic() - began_s < 5.0
    error = capsys.readouterr().err
    assert error.startswith(f"sqap-vla: error: --ray {address}: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", RAY_COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("", "--ray auto: no cluster runs on this computer: start one with `ray start --head`, or use --ray local\n"),
        ("soon", "--ray auto, for which RAY_ADDRESS is set to soon: must be auto, local, HOST:PORT or ray://HOST:PORT"),
        ("127.0.0.1:1", "--ray auto, for which RAY_ADDRESS is set to 127.0.0.1:1: no cluster answers at 127.0.0.1:1 ("),
    ],
)
def test_auto_without_a_cluster_is_said_at_once(command, variable, said, tmp_path, capsys, monkeypatch):
    def none(address):
        raise ConnectionError("specify the one to connect to by setting `--address` flag")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    monkeypatch.setenv("RAY_ADDRESS", variable)
    for name in ("ray", "ray._private"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[]))
    services = SimpleNamespace(canonicalize_bootstrap_address=none)
    monkeypatch.setitem(sys.modules, "ray._private.services", services)
    assert cli.main([*command, "--ray", "auto", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"sqap-vla: error: {said}")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_greets_is_connected_to_and_its_refusal_is_a_sentence(monkeypatch):
    """The nine bytes are an empty SETTINGS frame of HTTP/2, with which gRPC begins."""

    def refuse(**_):
        raise RuntimeError("Version mismatch: the cluster was started with Ray 2.9\n  File ...")

    ray = SimpleNamespace(init=refuse, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    greeting = b"\0\0\0\4\0\0\0\0\0"
    with one_answer(greeting) as port, pytest.raises(ValueError, match="Version") as error:
        ray_cluster(f"127.0.0.1:{port}").__enter__()
    said = "Ray does not connect: Version mismatch: the cluster was started with Ray 2.9"
    assert str(error.value).startswith(f"--ray 127.0.0.1:{port}: {said}; if Ray's lines above speak of a token")


@pytest.mark.parametrize("command", [("evaluate",), ("replay", "bag"), ("demo",), ("train",)], ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("dataset_statistics.json", "a checkpoint or demonstrations"),
        ("metadata.yaml", "a recording"),
        ("meta/info.json", "a recording"),
    ],
)
def test_results_are_not_written_among_other_files(command, file, what, tmp_path, capsys):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert cli.main([*command, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds {what}: choose another place for results" in capsys.readouterr().err


def test_an_empty_instruction_or_recipe_is_no_choice_of_one(capsys):
    assert cli.main(["demo", "--instruction", ""]) == 2
    assert "argument --instruction: the instruction is empty" in capsys.readouterr().err
    assert cli.main(["compress", "--checkpoint", "micro", "--recipe", "", "--out", "x.safetensors"]) == 2
    assert "the recipe's name is empty; there are: bf16, " in capsys.readouterr().err


def test_a_name_does_not_write_to_the_terminal_what_it_likes(capsys):
    assert cli.main(["inspect", "a\x1b[31mb" + "c" * 5000]) == 2
    said = capsys.readouterr().err
    assert r"a\x1b[31mb" in said
    assert len(said) < 4200


def test_an_evaluation_that_measured_nothing_prints_its_reason_alone(tmp_path, capsys, monkeypatch):
    problem = {"process 7": "ended with exit code -9"}
    monkeypatch.setattr("sqap_vla_ros.evaluation.closed_loop.run_study.run_units", lambda *args, **options: problem)
    assert cli.main(["evaluate", "--checkpoint", "micro", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: process 7: ended with exit code -9\n"


def test_a_gripper_outside_the_picture_is_said(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (80, 60)).save(tmp_path / "view.png")
    arguments = ["predict", "--image", str(tmp_path / "view.png"), "--instruction", "x", "--gripper-pixel", "80", "10"]
    assert cli.main(arguments) == 2
    assert "--gripper-pixel 80 10 lies outside the image, which has 80 x 60 pixels" in capsys.readouterr().err


def test_a_recipe_that_a_compressed_file_does_not_follow_is_said(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (80, 60)).save(tmp_path / "view.png")
    packed = str(tmp_path / "packed.safetensors")
    assert cli.main(["compress", "--checkpoint", "micro", "--recipe", "rtn_w8a16", "--out", packed]) == 0
    command = ["predict", "--checkpoint", packed, "--image", str(tmp_path / "view.png"), "--instruction", "pick it up"]
    for extra, said in (([], False), (["--recipe", "bf16"], True), (["--recipe", "rtn_w8a16"], False)):
        capsys.readouterr()
        assert cli.main([*command, *extra]) == 0
        note = "note: --recipe bf16 is ignored: the checkpoint is compressed as rtn_w8a16"
        assert (note in capsys.readouterr().err) is said
    capsys.readouterr()
    assert cli.main([*command, "--recipe", "fastv"]) == 0
    assert "ignored" not in capsys.readouterr().err  # its pruning is in effect


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_the_same_option_says_the_same_everywhere():
    """A recipe, a data set, a picture: one help text and one default for each meaning, whatever the command."""
    texts: dict[str, set[str]] = {}
    for parser in subcommands().values():
        for action in parser._actions:
            for name in {"--recipe", "--recipes", "--unnorm-key", "--gripper-pixel", "--image"} & set(
                action.option_strings
            ):
                texts.setdefault(name, set()).add(str(action.help))
    assert {name: len(found) for name, found in texts.items()} == dict.fromkeys(texts, 1)


def test_a_checkpoint_is_every_policy_that_ships_and_a_server_where_its_policy_can_be_used():
    told = {
        command: action.help
        for command, parser in subcommands().items()
        for action in parser._actions
        if "--checkpoint" in action.option_strings
    }
    assert {"demo", "compress", "inspect-tokens"} < set(told)
    assert all(f"`{name}`" in text for text in told.values() for name in SHIPPED)
    served = {command: text for command, text in told.items() if "ws://HOST:PORT" in text}
    assert set(served) == {"predict", "replay", "serve", "evaluate"}
    assert len(set(served.values())) == 1
    assert len(set(told.values())) == 2


def test_every_option_is_explained():
    silent = [
        f"{name} {action.option_strings or action.dest}"
        for name, parser in subcommands().items()
        for action in parser._actions
        if not action.help
    ]
    assert silent == []


def test_help_tells_defaults_worth_telling():
    shown = " ".join(subcommands()["replay"].format_help().split())
    assert "(default: fp32,w4a4,sqap)" in shown
    assert "(default: 0)" in shown
    assert "(default: )" not in shown
    assert "(default: None)" not in shown
    assert "(default: False)" not in shown


def test_traceback_is_taken_before_and_after_the_command():
    for arguments in (["--traceback", "inspect", "/nowhere"], ["inspect", "/nowhere", "--traceback"]):
        with pytest.raises(OSError, match="nowhere"):
            cli.main(arguments)
    assert cli.main(["inspect", "/nowhere"]) == 2


def test_ctrl_c_says_whether_the_command_goes_on(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    for command, text in ((("evaluate",), "the same command goes on from here"), (("bops",), "interrupted\n")):
        module = next(m for m in cli.COMMANDS if m.__name__.endswith(command[0]))
        monkeypatch.setattr(module, "run", interrupted)
        assert cli.main(list(command)) == 130
        assert text in capsys.readouterr().err


def test_numbers_within_their_range_pass():
    assert options.integer(1, 3)("2") == 2
    assert options.number(0.0, above=True)("0.5") == 0.5
    assert options.names(" fp32, sqap ") == ("fp32", "sqap")
    assert options.gripper_pixel([0.0, 59.0], 80, 60) == (0.0, 59.0)
    assert options.gripper_pixel(None, 80, 60) is None
