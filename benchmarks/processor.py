"""The processor's name, which every timing is stored with."""

import contextlib
import platform
from pathlib import Path


def processor() -> str:
    """Return the name that /proc/cpuinfo gives, that of the architecture where there is none."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
