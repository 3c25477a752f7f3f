"""What killed nodes left is removed after the tests: of the dead alone, and nothing else."""

import fcntl
import os
import time

from endings.shared_memory import NEW_S, sweep_segments


def test_segments_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path):
    old_s = time.time() - 2.0 * NEW_S
    for name in ("dead", "living", "begun", "port7400"):
        (tmp_path / f"fastdds_{name}").write_bytes(b"segment")
        (tmp_path / f"fastdds_{name}_el").touch()
        if name != "begun":
            os.utime(tmp_path / f"fastdds_{name}_el", (old_s, old_s))
    (tmp_path / "sem.mine_el").touch()
    before = {path.name for path in tmp_path.iterdir()}
    with (tmp_path / "fastdds_living_el").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep_segments(tmp_path) == 1
    assert before - {path.name for path in tmp_path.iterdir()} == {"fastdds_dead", "fastdds_dead_el"}
    assert sweep_segments(tmp_path) == 1  # its process has ended
    assert sweep_segments(tmp_path / "absent") == 0
