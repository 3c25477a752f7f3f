"""Counts the damaged JPEGs that pass each way of checking them, and the good ones that each refuses.

Compared are the package's own check, the warnings of libjpeg-turbo taken as errors (simplejpeg), FFmpeg's decoder told
to stop at errors (av), and a walk through the Huffman codes without computing pixels (jpeg_scan.cpp, compiled here): a
whole picture has exactly as many blocks as its frame, no code that its tables lack, no coefficient beyond a block's
64th, its restart markers where they belong, and fewer than eight bits, all ones, after the last block. With `ranges`,
no coefficient may be larger than pixels can make it either. With `padded`, more data before a marker is allowed:
webcams are known that write some in every picture (libjpeg warns of "extraneous bytes before marker"). No recording
here is from one of them, so the checks that refuse such data show no false alarm. simplejpeg and av may be absent.

    pip install simplejpeg av
    python benchmarks/damaged_jpegs.py [--data ../shared/data] [--copies 200]

Bytes are lost or overwritten at random places of the compressed data. For each check: how many damaged copies pass, and
in how many of these more than 1 % of the pixels are wrong by more than 16 levels. Raw results go to
results/damaged_jpegs.json.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sqap_vla_ros import jpeg
from sqap_vla_ros.simulation.observations import expert_observations

RESULTS = Path(__file__).parent / "results" / "damaged_jpegs.json"
VERDICTS = (  # of jpeg_scan.cpp; the first two pass
    *("whole", "not_judged"),
    *("bad_code", "past_block", "too_few", "left_over", "bad_fill", "bad_restart", "too_bright"),
)
QUALITIES = (50, 65, 80, 95)
SAMPLINGS = (0x411111, 0x221111, 0x211111, 0x111111)
LOST = (1, 2, 8, 64, 512)
OVERWRITTEN = (1, 8)
SIZES = ((640, 480), (1920, 1080))
VISIBLE = 16  # levels of 255 by which a pixel must differ to count as wrong
HARMFUL = 0.01  # share of wrong pixels

Check = Callable[[bytes], bool]  # True where the JPEG passes


def decoded(data: bytes) -> NDArray[np.uint8] | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def checks(folder: Path) -> tuple[dict[str, Check], Callable[[bytes, bool, bool], int]]:
    """Return the checks by name, and the scanner: (data, ranges, padded) to an index of VERDICTS."""
    library = folder / "jpeg_scan.so"
    source = Path(__file__).with_name("jpeg_scan.cpp")
    subprocess.run(["c++", "-O2", "-std=c++17", "-shared", "-fPIC", source, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).jpeg_scan
    function.argtypes = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int

    def scan(data: bytes, ranges: bool, padded: bool) -> int:
        return int(function(data, len(data), ranges, padded))

    def package(data: bytes) -> bool:
        pixels = decoded(data)
        return pixels is not None and not jpeg.is_cut(data, pixels)

    found: dict[str, Check] = {"package": package}
    if importlib.util.find_spec("simplejpeg"):
        found["simplejpeg strict"] = strict
    if importlib.util.find_spec("av"):
        found["av explode"] = explode
    found["scan"] = lambda data: scan(data, False, False) < 2
    found["scan and ranges"] = lambda data: scan(data, True, False) < 2
    found["scan and ranges, padded"] = lambda data: scan(data, True, True) < 2
    return found, scan


def strict(data: bytes) -> bool:
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, strict=True)
    except ValueError:
        return False
    return True


def explode(data: bytes) -> bool:
    import av

    context = av.CodecContext.create("mjpeg", "r")
    context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    context.thread_count = 1
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.error.FFmpegError, ValueError):
        return False
    return bool(frames) and not any(frame.is_corrupt for frame in frames)


def recorded_jpegs(data: Path) -> list[bytes]:
    """Return the JPEGs that stand in the files of `data` as they are."""
    found = []
    for path in sorted(p for p in data.rglob("*") if p.is_file() and p.suffix not in (".png", ".mp4")):
        content = path.read_bytes()
        for start in re.finditer(rb"\xff\xd8\xff[\xc0-\xfe]", content):
            end = content.find(b"\xff\xd9", start.start()) + 2
            whole = content[start.start() : end]
            if end > 1 and decoded(whole) is not None:
                found.append(whole)
    return found


def recorded_pictures(data: Path) -> Iterator[NDArray[np.uint8]]:
    for path in sorted(data.rglob("*.png")):
        yield cv2.imread(str(path), cv2.IMREAD_COLOR)
    for path in sorted(data.rglob("*.mp4")):
        film = cv2.VideoCapture(str(path))
        while (read := film.read())[0]:
            yield read[1]


def encoded(picture: NDArray[np.uint8], number: int) -> bytes:
    """Return a JPEG; qualities, samplings, restarts and optimised tables take turns by `number`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITIES[number % 4]]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[number // 4 % 4]]
    options += [cv2.IMWRITE_JPEG_RST_INTERVAL, 40 * (number % 5 == 4), cv2.IMWRITE_JPEG_OPTIMIZE, int(number % 3 == 2)]
    return cv2.imencode(".jpg", picture, options)[1].tobytes()


def damaged(whole: bytes, size: int, lost: bool, generator: np.random.Generator) -> bytes:
    begin = whole.find(b"\xff\xda") + 14
    at = int(generator.integers(begin, max(begin + 1, len(whole) - 2 - size)))
    instead = b"" if lost else generator.integers(0, 256, size, np.uint8).tobytes()
    return whole[:at] + instead + whole[min(at + size, len(whole) - 2) :]


def wrong_share(whole: bytes, damaged: bytes) -> float:
    """Return the share of pixels that differ visibly."""
    one, other = decoded(whole), decoded(damaged)
    if one is None or other is None or one.shape != other.shape:
        return 1.0
    return float((cv2.absdiff(one, other).max(axis=2) > VISIBLE).mean())


def measure(
    good: list[bytes], found: dict[str, Check], scan: Callable[[bytes, bool, bool], int], copies: int
) -> dict[str, object]:
    generator = np.random.default_rng(0)
    rows = {}
    for lost, size in [(True, n) for n in LOST] + [(False, n) for n in OVERWRITTEN]:
        longer = [whole for whole in good if len(whole) > 700 + 2 * size]  # so that most of the data is left
        passed, wrong = Counter(dict.fromkeys(found, 0)), Counter(dict.fromkeys(found, 0))
        reasons: Counter[str] = Counter()
        for _ in range(copies if longer else 0):
            whole = longer[int(generator.integers(len(longer)))]
            copy = whole
            while copy == whole:
                copy = damaged(whole, size, lost, generator)
            passing = [name for name, check in found.items() if check(copy)]
            passed.update(passing)
            reasons[VERDICTS[scan(copy, True, False)]] += 1
            if wrong_share(whole, copy) > HARMFUL:
                wrong.update(passing)
        rows[f"{size} {'lost' if lost else 'overwritten'}"] = {
            "copies": copies if longer else 0,
            "passed": dict(passed),
            "passed with more than 1 % of the pixels wrong": dict(wrong),
            "reasons of scan and ranges": dict(reasons),
        }
    refused = {name: sum(not check(whole) for whole in good) for name, check in found.items()}
    return {"good": len(good), "good refused": refused, "damaged": rows}


def timings(picture: NDArray[np.uint8], found: dict[str, Check]) -> dict[str, dict[str, float]]:
    """Return the least milliseconds of each check, and of decoding alone, by size and quality."""
    result = {}
    for size in SIZES:
        for quality in (80, 95):
            data = cv2.imencode(".jpg", cv2.resize(picture, size), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            row = {}
            for name, check in {"cv2.imdecode": lambda data: decoded(data) is not None, **found}.items():
                times = []
                for _ in range(31):
                    start = time.perf_counter()
                    check(data)
                    times.append(1e3 * (time.perf_counter() - start))
                row[name] = round(min(times), 3)  # other processes run beside it
            result[f"{size[0]}x{size[1]}, quality {quality}, {len(data)} bytes"] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--copies", type=int, default=200)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pictures = list(recorded_pictures(arguments.data))
    rendered = [np.ascontiguousarray(seen.image[..., ::-1]) for seen in expert_observations(16)]
    groups = {
        "recorded JPEGs, 64x64": recorded_jpegs(arguments.data),
        "recorded pictures": [encoded(picture, n) for n, picture in enumerate(4 * pictures)],
        "rendered 640x480": [encoded(picture, n) for n, picture in enumerate(8 * rendered)],
    }
    with tempfile.TemporaryDirectory() as folder:
        found, scan = checks(Path(folder))
        result = {name: measure(good, found, scan, arguments.copies) for name, good in groups.items()}
        result["milliseconds"] = timings(pictures[0], found)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
