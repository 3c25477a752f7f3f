"""Tags and ChArUco boards on the tool: the pixel of their middle in an image."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros.robot.hand_eye.pairs import Array, extent

FORMS = "tag:DICTIONARY:ID or charuco:DICTIONARY:COLUMNSxROWS:SQUARE:MARKER"
_EXAMPLES = "tag:apriltag_36h11:7, charuco:5x5_100:7x5:0.030:0.022"
ONE_TAG_PX = 3.0  # between the middles of squares in and around one tag, which OpenCV 4.6 gives each
_LEAST_CORNERS = 6  # of a ChArUco board


class Board(ABC):
    """Something flat with a known pattern, whose middle can be found in an image."""

    @abstractmethod
    def middle(self, gray: NDArray[np.uint8]) -> Array | None:
        """Return the pixel [2] of the board's middle in a grey image [H, W]; None where the board is not seen."""


class Tag(Board):
    """One marker of a dictionary; its middle is where its diagonals cross."""

    def __init__(self, dictionary: str, number: int) -> None:
        self._number = number
        size = len(_dictionary(dictionary).bytesList)
        if not 0 <= number < size:
            raise ValueError(f"--board: {dictionary} has the tags 0 to {size - 1}, got {number}")
        if hasattr(cv2.aruco, "ArucoDetector"):
            parameters = cv2.aruco.DetectorParameters()
            parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
            self._detect: Any = cv2.aruco.ArucoDetector(_dictionary(dictionary), parameters).detectMarkers
        else:  # OpenCV 4.6, as in Ubuntu 24.04
            old: Any = cv2.aruco
            parameters = old.DetectorParameters_create()
            parameters.cornerRefinementMethod = old.CORNER_REFINE_SUBPIX
            parameters.minMarkerDistanceRate = 0.01  # it takes the edge of a narrow white margin for the tag otherwise
            self._detect = lambda gray: old.detectMarkers(gray, _dictionary(dictionary), parameters=parameters)

    def middle(self, gray: NDArray[np.uint8]) -> Array | None:
        """See `Board`. None also where the tag is there twice."""
        corners, numbers, _ = self._detect(gray)
        if numbers is None:
            return None
        mine = [c for c, n in zip(corners, np.ravel(numbers), strict=True) if n == self._number]
        middles = [_crossing(np.asarray(corners, dtype=np.float64).reshape(4, 2)) for corners in mine]
        if not middles or extent(np.stack(middles)) > ONE_TAG_PX:
            return None
        largest = max(range(len(mine)), key=lambda k: cv2.contourArea(np.asarray(mine[k]).reshape(4, 1, 2)))
        return middles[largest]


def _crossing(corners: Array) -> Array:
    """Return where the diagonals of a quadrangle [4, 2] cross."""
    a, b, c, d = corners
    along, _ = np.linalg.solve(np.stack([c - a, b - d], axis=1), b - a)
    return np.asarray(a + along * (c - a))


class Charuco(Board):
    """A chessboard with markers in its white squares, of either pattern that OpenCV has printed."""

    def __init__(self, dictionary: str, columns: int, rows: int, square_m: float, marker_m: float) -> None:
        if not hasattr(cv2.aruco, "CharucoDetector"):
            raise ValueError(f"--board: a ChArUco board needs OpenCV 4.7, this is {cv2.__version__}: use a tag")
        if min(columns, rows) < 2 or not 0.0 < marker_m < square_m:
            raise ValueError(
                "--board: a ChArUco board has at least 2x2 squares and markers smaller than its squares, got "
                f"{columns}x{rows}, {square_m:g} m, {marker_m:g} m"
            )
        self._middle = np.array([[[0.5 * columns * square_m, 0.5 * rows * square_m]]])
        self._detectors = []
        if columns * rows // 2 > len(_dictionary(dictionary).bytesList):
            raise ValueError(f"--board: {dictionary} has too few markers for {columns}x{rows} squares")
        for legacy in (False, True):
            board = cv2.aruco.CharucoBoard((columns, rows), square_m, marker_m, _dictionary(dictionary))
            board.setLegacyPattern(legacy)
            self._detectors.append((board.getChessboardCorners(), cv2.aruco.CharucoDetector(board).detectBoard))

    def middle(self, gray: NDArray[np.uint8]) -> Array | None:
        """See `Board`."""
        for places, detect in self._detectors:
            corners, numbers, *_ = detect(gray)
            if numbers is None or len(numbers) < _LEAST_CORNERS:
                continue
            flat = np.asarray(places)[np.ravel(numbers), :2].astype(np.float64)
            seen, _ = cv2.findHomography(flat, np.asarray(corners, dtype=np.float64).reshape(-1, 2))
            if seen is not None:
                return np.asarray(cv2.perspectiveTransform(self._middle, seen)).ravel()
        return None


def read_board(text: str) -> Board:
    """Read `FORMS`. Raises ValueError."""
    tag = re.fullmatch(r"tag:(\w+):(\d+)", text)
    charuco = re.fullmatch(r"charuco:(\w+):(\d+)x(\d+):([\d.]+):([\d.]+)", text)
    if tag:
        return Tag(tag[1], int(tag[2]))
    if charuco:
        name, columns, rows, square_m, marker_m = charuco.groups()
        return Charuco(name, int(columns), int(rows), _number(square_m), _number(marker_m))
    raise ValueError(f"--board must be {FORMS} (lengths in metres), such as {_EXAMPLES}; got {text!r}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--board: a length must be a number in metres, got {text!r}") from None


def _dictionary(name: str) -> Any:
    if not hasattr(cv2, "aruco"):
        raise ValueError(f"--board: OpenCV {cv2.__version__} has no markers: install 4.7 or newer, or use --clicks")
    known = {attribute[5:].lower(): attribute for attribute in dir(cv2.aruco) if attribute.startswith("DICT_")}
    if name.lower() not in known:
        raise ValueError(f"--board knows no dictionary {name!r}; there are: {', '.join(sorted(known))}")
    return cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, known[name.lower()]))
