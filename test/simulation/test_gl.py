import importlib.util
import os
import subprocess
import sys

import pytest

from sqap_vla_ros.simulation import gl


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, timeout=60
    )


def test_the_users_choice_comes_first(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(gl, "_working_backend", lambda: pytest.fail("looked for a backend although one was chosen"))
    try:
        context, backend = gl.create_context(32, 32)
    except gl.RenderingUnavailableError as error:
        assert "'osmesa' failed" in str(error)  # noqa: PT017
    else:
        assert backend == "osmesa"
        context.free()


def test_physics_works_where_rendering_is_off():
    code = (
        "from sqap_vla_ros.simulation.environment import TabletopEnv\n"
        "env = TabletopEnv(); env.reset(0)\n"
        "env.step([0, 0, 0, 0, 0, 0, 1])\n"
        "env.render()"
    )
    result = run(code, MUJOCO_GL="disabled")
    assert result.returncode == 1
    assert "MUJOCO_GL=disabled turns rendering off: unset it" in result.stderr.splitlines()[-1]


def test_egl_then_osmesa_then_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl.platform, "system", lambda: "Linux")
    for egl, osmesa, expected in ((True, True, "egl"), (False, True, "osmesa"), (False, False, "off")):
        monkeypatch.setattr(gl, "_egl_opens", lambda egl=egl: egl)
        monkeypatch.setattr(gl, "_osmesa_opens", lambda osmesa=osmesa: osmesa)
        assert gl._working_backend() == expected
    with pytest.raises(gl.RenderingUnavailableError, match="apt install libegl1"):
        gl.create_context(32, 32)


def test_rendering_ends_without_complaints():
    code = (
        "from sqap_vla_ros.simulation.environment import TabletopEnv\n"
        "with TabletopEnv(width=64, height=48) as env:\n"
        "    env.reset(0)\n"
        "    print(env.render().shape)"
    )
    result = run(code)
    if "apt install" in result.stderr:
        pytest.skip("no OpenGL on this machine")
    assert (result.returncode, result.stdout, result.stderr) == (0, "(48, 64, 3)\n", "")


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
def test_triton_can_be_imported_after_rendering():
    code = (
        "from sqap_vla_ros.simulation.environment import TabletopEnv\n"
        "with TabletopEnv(width=64, height=48) as env:\n"
        "    env.reset(0)\n"
        "    env.render()\n"
        "import triton._C.libtriton\n"
        "print('both')"
    )
    result = run(code)
    if "apt install" in result.stderr:
        pytest.skip("no OpenGL on this machine")
    assert (result.returncode, result.stdout.strip()) == (0, "both"), result.stderr
