"""The policy doubles and the rig are imported by name, here and in the processes that the tests start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
