"""Folders that tests read."""

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent  # on sys.path of every test, and of the processes that tests start
ROOT = SUPPORT.parents[1]
TABLETOP_BAG = ROOT / "test" / "bags" / "tabletop"
