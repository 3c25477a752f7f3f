"""What every test runs under: a private, local DDS domain, one thread per process, strict message fields, real data."""

import gc
import os
import sys
import tempfile
from pathlib import Path

import pytest
from endings.shared_memory import sweep_segments
from hypothesis import settings

from sqap_vla_ros.nodes.launch.table import dds_environment

ROOT = Path(__file__).resolve().parent.parent
NODES = "ros"  # group of the tests that run nodes
_REAL_DATA = Path(os.environ.get("SQAP_VLA_DATA", ROOT.parent / "shared" / "data"))


# What is imported and collected stays to the end. To look through it for garbage again and again would take much of a
# run's time: nothing is looked for until all of it is there, and then only in what came after it.
gc.disable()


settings.register_profile(
    "busy computer", deadline=None
)  # an example may stand still for a while, and that is no fault
settings.load_profile("busy computer")


def _private_domain() -> int:
    """A DDS domain for this process of this run: 1 to 100, within what leaves the ephemeral ports alone."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")  # shared by the workers of one run
    start = int(run[:8], 16) if run else os.getpid()
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return 1 + (start + int(worker)) % 100


# Before anything imports rclpy, MuJoCo, torch or Triton: they read these once. Processes started by tests inherit them.
os.environ.update(
    ROS_DOMAIN_ID=str(_private_domain()),
    ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
    ROS_PYTHON_CHECK_FIELDS="1",
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    TRITON_INTERPRET="1",
    no_proxy="localhost,127.0.0.1,::1",  # for clients that others wrote: the servers of tests are on this computer
    PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
)
os.environ.update(dds_environment(os.environ))
# Hundreds of processes import the package, which takes half a second longer where each compiles it for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
_cache = tempfile.TemporaryDirectory(
    prefix="sqap_vla_ros_cache_"
)  # of compressed policies; compiled kernels are taken over
_kernels = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sqap_vla_ros")
Path(_cache.name, "sqap_vla_ros").mkdir()
for _kernel in _kernels.glob("*.so"):
    Path(_cache.name, "sqap_vla_ros", _kernel.name).symlink_to(_kernel)
os.environ["XDG_CACHE_HOME"] = _cache.name
_logs = tempfile.TemporaryDirectory(prefix="sqap_vla_ros_log_")
os.environ.setdefault("ROS_LOG_DIR", _logs.name)
os.environ.setdefault("HOME", _logs.name)  # rclpy refuses to start without one


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker takes all tests that run nodes, one after the other; the rest is shared out file by file.

    In nodes/policy/stepped the parts of a node are stepped by hand: no node runs, and no real time passes.
    """
    for item in items:
        relative = item.path.relative_to(ROOT / "test")
        if relative.parts[0] == "nodes":
            item.add_marker("ros")
        runs_nodes = item.get_closest_marker("ros") and "stepped" not in relative.parts
        item.add_marker(pytest.mark.xdist_group(NODES if runs_nodes else str(relative)))


def pytest_sessionfinish() -> None:
    """Tests kill nodes, and two dozen of these leave nearly a gigabyte behind."""
    sweep_segments()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Look for garbage again, but not in what the whole run needs."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let what was kept go: libraries in other languages count at the end what was not given back."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def real_data():
    """`real_data("jsk_demos/test-button-light.bag")` is the path of a recorded file; the test is skipped without it."""

    def find(relative: str) -> Path:
        path = _REAL_DATA / relative
        if not path.exists():
            pytest.skip(f"recorded data {path} is absent (SQAP_VLA_DATA names the folder that holds it)")
        return path

    return find
