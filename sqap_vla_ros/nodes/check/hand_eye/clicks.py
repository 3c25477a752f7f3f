"""Clicked pixels from a file, by the stamp of their image."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.nodes.check.hand_eye.sights import Array

COLUMNS = ("stamp", "u", "v")
_FORM = (
    "it must be a CSV with the columns stamp, u, v or a JSON list of objects with these keys: seconds with nine "
    "decimals, and the pixel to the right and down"
)


def stamp_text(stamp_ns: int) -> str:
    """Return a stamp as files and pictures have it: seconds with nine decimals."""
    return f"{stamp_ns // NS_PER_S}.{stamp_ns % NS_PER_S:09d}"


def read_clicks(path: Path) -> dict[int, Array]:
    """Return stamp in nanoseconds -> pixel [2]. A row without u and v says that the tool is not in that picture.

    Raises ValueError for what is no such file, and OSError.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            rows: Iterable[Any] = json.loads(text, parse_float=Decimal)
        else:
            rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
        found = {}
        for row in rows:
            stamp, u, v = (row[name] for name in COLUMNS)
            if u in ("", None) or v in ("", None):
                continue
            pixel = np.array([float(u), float(v)])
            if not np.isfinite(pixel).all():
                raise ValueError(f"u and v must be finite, got {u}, {v}")
            found[int(Decimal(str(stamp)) * NS_PER_S)] = pixel
    except OSError as error:
        raise OSError(f"{path} cannot be read as clicks ({error.strerror}): {_FORM}") from error
    except (ValueError, KeyError, TypeError, ArithmeticError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as clicks ({type(error).__name__}: {error}): {_FORM}") from error
    return found
