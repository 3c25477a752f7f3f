"""libero.sh, with stand-ins for LIBERO's environment and the server: whose port it takes, and how it renders."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "outside" / "libero.sh"
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")

# Serves /health on the port that it is given, as `sqap-vla serve` does, and says which one.
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

try:
    server = HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy)
except OSError as error:
    sys.exit(f"sqap-vla: error: {error}")
print(*sys.argv, flush=True)
print(f"listening on ws://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def occupied():
    """The port of another server, which is healthy."""
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    """Run the script in a folder of its own; the stand-ins append how they render to `rendered`."""
    programs = {
        "bin/sqap-vla": f'exec {sys.executable} {tmp_path}/server.py "$@"',
        "venv/bin/python": f"echo camera $MUJOCO_GL >>{tmp_path}/rendered\n"
        'for n in $CAMERAS; do echo {} >$3/camera_$n.json; echo [\\"task $n\\"] >$3/tasks_$n.json; done',
        "venv/bin/vla-eval": f"echo vla-eval $MUJOCO_GL $4 >>{tmp_path}/rendered",
    }
    for name, body in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    (tmp_path / "server.py").write_text(SERVER)
    inherited = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "RENDER", "PORT")}
    paths = {"CAMERAS": "0", "LIBERO_VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def run(**variables):
        environment = {**inherited, **paths, **variables}
        return subprocess.run([SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_the_client_gets_the_port_of_the_server_that_was_started(run, tmp_path, occupied):
    done = run()
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "libero" / "libero_spatial"
    url = json.loads((folder / "run.json").read_text())["server"]["url"]
    assert url == (folder / "serve.log").read_text().split()[-1] + "/vla-eval"
    assert str(occupied) not in url


def test_another_server_at_the_port_is_not_taken_for_the_own_one(run, tmp_path, occupied):
    done = run(PORT=str(occupied))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "vla-eval" not in (tmp_path / "rendered").read_text()


@pytest.mark.parametrize(("render", "how"), [("cpu", "osmesa"), ("gpu", "egl")])
def test_the_camera_is_rendered_as_the_episodes_are(run, tmp_path, render, how):
    assert run(RENDER=render).returncode == 0
    assert (tmp_path / "rendered").read_text() == f"camera {how}\nvla-eval {how} {render}\n"


def test_each_kind_of_scene_is_seen_through_its_own_camera(run, tmp_path):
    done = run(CAMERAS="0 1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "libero" / "libero_spatial"
    served = [(folder / f"camera_{n}" / "serve.log").read_text() for n in range(2)]
    assert [f"{folder}/camera_{n}.json" in served[n] for n in range(2)] == [True, True]
    runs = [json.loads((folder / f"camera_{n}" / "run.json").read_text()) for n in range(2)]
    assert [one["benchmarks"][0]["tasks"] for one in runs] == [["task 0"], ["task 1"]]
    assert [one["server"]["url"] for one in runs] == [log.split()[-1] + "/vla-eval" for log in served]


def test_a_suite_without_a_camera_is_not_served(run):
    done = run(CAMERAS="")
    assert done.returncode == 1
    assert "wrote no camera of libero_spatial" in done.stderr


def test_a_proxy_is_not_asked_for_the_server(run):
    assert run(http_proxy="http://127.0.0.1:9").returncode == 0
