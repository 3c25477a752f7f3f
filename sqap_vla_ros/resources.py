"""Paths of the package's files (config/, launch/), in the source checkout or in the ament share folder."""

import os
import sys
from pathlib import Path

_PACKAGE = "sqap_vla_ros"
_CHECKOUT = Path(__file__).parent.parent


def share_folders() -> list[Path]:
    """Return the folders that may hold the package's files, the one that wins first.

    A module of a source checkout (package.xml beside the package) uses the checkout's files alone, so that an edited
    YAML file is never shadowed by an older installed one.
    """
    if (_CHECKOUT / "package.xml").is_file():
        return [_CHECKOUT]
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    return [Path(prefix, "share", _PACKAGE) for prefix in dict.fromkeys(prefixes) if prefix]


def share_path(relative: str) -> Path:
    """Return the path of a file or folder that ships with the package.

    Args:
        relative: as in the source tree, for example "config/policy.yaml".

    Raises:
        FileNotFoundError: nothing of that name ships with the package; the message lists where it was looked for.
    """
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ValueError(f"share_path takes a path inside the package such as 'config/policy.yaml', got {relative!r}")
    candidates = [folder / relative for folder in share_folders()]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{relative} of {_PACKAGE} is in none of: {', '.join(map(str, candidates))}. "
        "Source the workspace's setup.bash (or install the package) again."
    )
