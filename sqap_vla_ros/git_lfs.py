"""Tells the pointers that Git LFS leaves in a repository, where its files were not fetched, from the files."""

from pathlib import Path

_START = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Return whether a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(len(_START)) == _START
