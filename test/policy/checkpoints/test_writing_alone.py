"""Two that write the same file or folder: the second is refused and does no harm; the dead are in nobody's way."""

import os
import signal
import subprocess
import sys

import pytest

from sqap_vla_ros.policy.checkpoints.writing import BeingWritten, WriteError, written_aside

WRITES = """
import sys, time
from pathlib import Path
from sqap_vla_ros.policy.checkpoints.writing import written_aside
with written_aside(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "first").write_text("of another process")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process in the middle of writing a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path / "set")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


def write(path):
    with written_aside(path) as partial:
        partial.mkdir()
        (partial / "second").write_text("of this process")


def test_a_second_writer_is_refused_and_the_first_goes_on(tmp_path, other):
    for _ in range(2):
        with pytest.raises(
            BeingWritten, match=r"set is being written by another program: wait for it, or choose another"
        ):
            write(tmp_path / "set")
    write(tmp_path / "set2")  # of another name
    other.communicate("\n", timeout=30)
    assert other.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set2"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["first"]
    with pytest.raises(
        WriteError, match=r"set cannot be written \(it exists\): nothing is overwritten, choose another name"
    ):
        write(tmp_path / "set")


def test_what_a_killed_writer_left_is_replaced(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "set.writing" / "first").exists()
    write(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["second"]


def test_within_one_process_it_is_the_same(tmp_path):
    path = tmp_path / "file"
    with written_aside(path) as partial:
        partial.write_text("first")
        with pytest.raises(BeingWritten), written_aside(path):
            pytest.fail("two write at once")
        assert partial.read_text() == "first"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]
