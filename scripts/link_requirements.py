#!/usr/bin/env python3
"""Fill a virtual environment with links to what an installed distribution requires, in place of downloading it.

    python scripts/link_requirements.py SITE_PACKAGES NAME [EXTRA ...]

NAME is installed in SITE_PACKAGES, alone. Everything that it requires, directly or not, is linked from the environment
that runs this, and nothing else, so that what is not required cannot be imported. Status 77 where that environment
lacks something.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

LACKING = 77  # the status that test programs give for "skipped"


def required(found: Distribution, extras: set[str]) -> list[Requirement]:
    """Return what a distribution requires here, with these of its extras."""
    every = [Requirement(line) for line in found.requires or ()]
    environments = [{"extra": extra} for extra in extras | {""}]
    return [one for one in every if one.marker is None or any(map(one.marker.evaluate, environments))]


def link(found: Distribution, site: Path) -> None:
    """Link a distribution's modules, libraries and metadata into `site`."""
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        source, target = Path(str(found.locate_file(top))), site / top
        if source.exists() and not target.exists():
            target.symlink_to(source.resolve())


def main(site: Path, name: str, extras: set[str]) -> None:
    """Link all that `name` requires."""
    (own,) = distributions(name=name, path=[str(site)])
    waiting, seen = required(own, extras), set()
    while waiting:
        requirement = waiting.pop()
        key = (requirement.name.lower(), *sorted(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(requirement.name)
        except PackageNotFoundError:
            print(f"{requirement.name} is not installed in {sys.prefix}: nothing to link", file=sys.stderr)
            sys.exit(LACKING)
        link(found, site)
        waiting += required(found, set(requirement.extras))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], set(sys.argv[3:]))
