"""What nodes that were killed leave in shared memory: 35 MB each, of the computer's memory, until it is restarted."""

import contextlib
import fcntl
import time
from pathlib import Path

FOLDER = Path("/dev/shm")  # where Fast DDS keeps its segments on Linux
NEW_S = 30.0  # a process that has just begun may not hold its lock yet


def sweep_segments(folder: Path = FOLDER) -> int:
    """Remove Fast DDS's segments whose processes are gone, as `fastdds shm clean` does; return how many there were.

    The process that made a segment holds a lock on `<segment>_el` as long as it lives.
    """
    removed = 0
    for lock in folder.glob("fastdds_*_el"):
        if lock.name.startswith("fastdds_port"):  # of several processes, and small
            continue
        with contextlib.suppress(OSError):  # held, of another user, or removed meanwhile
            if time.time() - lock.stat().st_mtime < NEW_S:
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
                lock.unlink()
                removed += 1
    return removed
