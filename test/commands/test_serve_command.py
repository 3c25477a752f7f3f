"""`sqap-vla serve` from the command line: a real policy, served as it predicts here."""

import errno
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

from sqap_vla_ros import cli
from sqap_vla_ros.commands import serve
from sqap_vla_ros.contracts import Observation

CAMERA = "width: 64\nheight: 48\nk: [50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1]\n"
SERVE = [sys.executable, "-m", "sqap_vla_ros.cli", "serve", "--checkpoint", "micro", "--port", "0"]


@pytest.fixture(autouse=True)
def _library():
    pytest.importorskip("msgpack", reason="msgpack is not installed (pip install 'sqap-vla-ros[serve]')")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_predictions_equal_those_made_here_and_a_signal_is_a_good_end(number):
    from sqap_vla_ros.compression.load import load_policy
    from sqap_vla_ros.serving.remote import RemotePolicy
    from sqap_vla_ros.shipped import SHIPPED

    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    observation = Observation(image, 5, "pick up the red cube", (100.0, 120.0), np.eye(4))
    here = load_policy("micro", "fp32", shipped=SHIPPED).predict(observation, seed=3)
    process = subprocess.Popen(
        SERVE,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )
    try:
        address = process.stdout.readline().split()[-1]
        remote = RemotePolicy(address, timeout_s=60.0)
        there = remote.predict(observation, seed=3)
        assert there.deltas.tobytes() == here.deltas.tobytes()
        assert there.normalized.tobytes() == here.normalized.tobytes()
        remote.close()
        process.send_signal(number)
        assert process.wait(20.0) == 0
    finally:
        process.kill()
        process.wait()


def test_a_policy_that_cannot_be_loaded_ends_the_server_with_the_reason():
    done = subprocess.run([*SERVE, "--checkpoint", "nowhere"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "the policy cannot be loaded" in done.stderr
    assert "nowhere" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--action-space", "imperial"], "must be one of metric, simpler, libero, libero_displacement, got 'imperial'"),
        (["--ensemble", "mean"], "one of none, by_time, original, got 'mean'"),
        (["--ensemble-chunks", "0"], "--ensemble-chunks"),
        (["--ensemble-chunks", "101"], "--ensemble-chunks"),
        (["--ensemble", "original"], "needs an execution horizon of 1, got 8"),
        (["--camera-info", "CAMERA"], "belong together: give both"),
        (["--simulator-camera", "CAMERA"], "must be a JSON object"),
        (["--simulator-camera", "CAMERA", "--camera-info", "CAMERA"], "--simulator-camera replaces"),
        (["--camera-info", "CAMERA", "--camera-pose", *"0000000"], "quaternion must be"),
        (["--host", "0.0.0.0"], "can be reached from outside: set a token"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1: Name or service not known: give 127.0.0.1, another address of"),
        (["--host", "nosuch.invalid"], "--host nosuch.invalid: Name or service not known: give 127.0.0.1, another"),
        (["--host", "a" * 70], "label too long): give 127.0.0.1, another address of this computer"),
        (["--host", ""], "--host : is empty: give 127.0.0.1, another address of this computer"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, text, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("SQAP_VLA_TOKEN", raising=False)
    camera = tmp_path / "camera.yaml"
    camera.write_text(CAMERA)
    assert cli.main(["serve", *[str(camera) if a == "CAMERA" else a for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("sqap-vla: error: ")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            errno.EADDRINUSE,
            "--port 1: another program listens on it at 192.0.2.1: choose another --port, or 0 for a free",
        ),
        (errno.EACCES, "--port 1: this user may not listen on it (below 1024 it takes special rights): choose another"),
        (errno.EADDRNOTAVAIL, "--host 192.0.2.1: is no address of this computer: give 127.0.0.1, another address of"),
        (errno.ENODEV, "--host 192.0.2.1: No such device: give 127.0.0.1, another address of"),
        (None, "--host 192.0.2.1: nothing could be bound: give 127.0.0.1, another address of"),
    ],
)
def test_where_nobody_can_be_served_is_said_with_the_remedy(number, said):
    error = OSError("nothing could be bound") if number is None else OSError(number, os.strerror(number))
    assert serve._listening_problem(error, "192.0.2.1", 1).startswith(said)


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert cli.main(["serve", "--checkpoint", "micro", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"sqap-vla: error: --port {port}: another program listens on it at 127.0.0.1: choose another --port" in error


def test_the_ensemble_of_the_google_robot_can_be_served():
    from sqap_vla_ros.commands.serve import make_service
    from sqap_vla_ros.serving.worker import WorkerConfig

    typed = ["serve", "--ensemble", "original", "--execution-horizon", "1", "--ensemble-chunks", "2"]
    service = make_service(cli.build_parser().parse_args(typed), WorkerConfig("micro"))
    assert (service.chunk_use.ensemble, service.chunk_use.ensemble_chunks) == ("original", 2)


@pytest.mark.parametrize("token", [" \n", "a\nb", "schl\u00fcssel", "a\udcff"])
def test_a_token_that_no_header_can_carry_is_one_line(token, capsys, monkeypatch):
    monkeypatch.setenv("SQAP_VLA_TOKEN", token)
    assert cli.main(["serve", "--checkpoint", "micro"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "sqap-vla: error: the environment variable SQAP_VLA_TOKEN holds no token: set visible ASCII"
    )
    assert token.strip() not in error or not token.strip()
