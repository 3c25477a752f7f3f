"""Measures the contrast of pictures in which something can be seen, and of some in which nothing can.

The node refuses an image whose contrast is `LEAST_CONTRAST` levels or less, unless something stands out from its one
colour (`control/camera/visibility.py`). Measured are the recorded pictures of --data, also an eighth and eight times as
bright, the simulator's in its variations, one grey level with the noise of a sensor or a caption, and a gripper before
a white table.

    python benchmarks/image_contrast.py [--data ../shared/data] [--episodes 150]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rosbags.highlevel import AnyReader

from sqap_vla_ros.control.camera.visibility import LEAST_CONTRAST, contrast, nothing_visible
from sqap_vla_ros.pictures import read_picture
from sqap_vla_ros.simulation import layout
from sqap_vla_ros.simulation.environment import TabletopEnv

Picture = NDArray[np.uint8]


def photographs(data: Path) -> Iterator[Picture]:
    """Pictures and films of robots."""
    for file in sorted(data.rglob("*.png")):
        yield read_picture(file)
    for file in sorted(data.rglob("*.mp4")):
        film = cv2.VideoCapture(str(file))
        while (read := film.read())[0]:
            yield read[1][..., ::-1]


def dark_room(data: Path) -> Iterator[Picture]:
    """The camera of a PR2 in a dark room."""
    with AnyReader([data / "jsk_demos" / "test-button-light.bag"]) as reader:
        for connection, _, raw in reader.messages():
            if connection.topic.endswith("image_raw"):
                image = reader.deserialize(raw, connection.msgtype)
                yield cv2.cvtColor(image.data.reshape(image.height, image.width), cv2.COLOR_BayerBG2RGB)


def bridge(data: Path) -> Iterator[Picture]:
    """Every JPEG of a TFRecord of 64 x 64 pictures; views that a recording lacks are black, and left out."""
    (file,) = (data / "octo").iterdir()
    for part in file.read_bytes().split(b"\xff\xd8\xff")[1:]:
        image = np.asarray(Image.open(io.BytesIO(b"\xff\xd8\xff" + part)).convert("RGB"))
        if image.max() > 0:
            yield image


def simulated(variation: layout.Variation, episodes: int) -> Iterator[Picture]:
    """The first picture of each episode."""
    with TabletopEnv(variation=variation, width=224, height=224) as tabletop:
        for seed in range(episodes):
            tabletop.reset(seed)
            yield tabletop.render()


def covered(deviation: float) -> Picture:
    """One grey level with noise."""
    noise = np.random.default_rng(0).normal(30.0, deviation, (480, 640, 3))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def captioned() -> Picture:
    """One grey level with a line of text."""
    return cv2.putText(covered(1), "CAM 1  12:00:00", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (255, 255, 255), 2)


def white_table(share: float) -> Picture:
    """A white table, and a dark gripper on so much of the picture."""
    image = np.full((480, 640, 3), 235, np.uint8)
    width = round((share * image[..., 0].size / 1.5) ** 0.5)
    image[100 : 100 + width * 3 // 2, 300 : 300 + width] = (40, 40, 60)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--episodes", type=int, default=150)
    arguments = parser.parse_args()
    recorded = list(photographs(arguments.data))
    sources: dict[str, list[Picture]] = {
        "photographs": recorded,
        "the same, an eighth as bright": [image // 8 for image in recorded],
        "the same, eight times as bright": [
            np.minimum(8 * image.astype(int), 255).astype(np.uint8) for image in recorded
        ],
        "dark room": list(dark_room(arguments.data)),
        "bridge, 64 x 64": list(bridge(arguments.data)),
        "grey, a caption": [captioned()],
        **{f"white, gripper on {share:.1%}": [white_table(share)] for share in (0.005, 0.01, 0.015, 0.03)},
        **{f"grey, noise of {level} levels": [covered(level)] for level in (1, 2, 5, 10)},
    }
    for name in ("VISUAL_MATCHING", "VARIANT_AGGREGATION", "RANDOMISED"):
        sources[f"simulator, {name.lower()}"] = list(simulated(getattr(layout, name), arguments.episodes))
    print(f"{'pictures':36s} count  least contrast (limit {LEAST_CONTRAST:g} of 255)  refused")
    for name, images in sources.items():
        refused = sum(nothing_visible(image) is not None for image in images)
        print(f"{name:36s} {len(images):5d}  {min(map(contrast, images)):5.1f}  {refused:36d}")


if __name__ == "__main__":
    main()
