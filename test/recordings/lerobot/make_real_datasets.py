#!/usr/bin/env python3
"""Write `data/` with lerobot itself, or check a dataset with it. Needs an environment with `lerobot==0.4.4`.

python make_real_datasets.py write FOLDER         writes FOLDER/video and FOLDER/image
python make_real_datasets.py read DATASET [N...]  prints what lerobot reads of the frames N, as JSON
"""

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

SHAPE = (64, 96, 3)
STATE = ["x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper"]
ACTION = ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
EPISODES = ((6, "pick up the red can"), (5, "put the cup on the plate"))


def write(root: Path, dtype: str) -> None:
    """Write two episodes whose contents the test knows in closed form."""
    features = {
        "observation.images.top": {"dtype": dtype, "shape": SHAPE, "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (8,), "names": STATE},
        "action": {"dtype": "float32", "shape": (7,), "names": ACTION},
    }
    dataset = LeRobotDataset.create("tiny/tiny", fps=10, features=features, root=root, use_videos=dtype == "video")
    for episode, (length, task) in enumerate(EPISODES):
        for frame in range(length):
            image = np.zeros(SHAPE, np.uint8)
            image[...] = (40 * episode + 20, 30 * frame + 10, 200 - 30 * frame)
            image[10:30, 10 + 4 * frame : 30 + 4 * frame] = (255, 255, 0)
            state = [0.3 + 0.01 * frame, 0.1 * episode, 0.2, 3.1, 0.0, 0.05 * frame, 0.0, 1.0]
            action = [0.01, 0.0, 0.0, 0.0, 0.0, 0.05, float(frame < 3)]
            dataset.add_frame(
                {
                    "observation.images.top": image,
                    "observation.state": np.array(state, np.float32),
                    "action": np.array(action, np.float32),
                    "task": task,
                }
            )
        dataset.save_episode()
    dataset.finalize()


def read(root: Path, wanted: list[int]) -> dict[str, object]:
    """Return what lerobot makes of a dataset."""
    dataset = LeRobotDataset("tiny/tiny", root=root, video_backend="pyav")
    frames = []
    for number in wanted or range(len(dataset)):
        frame = dataset[number]
        picture = next(value for key, value in frame.items() if key.startswith("observation.images"))
        numbers = {key: frame[key].tolist() for key in ("observation.state", "action", "episode_index", "timestamp")}
        frames.append({**numbers, "task": frame["task"], "picture": (picture * 255).round().int().tolist()})
    return {"episodes": dataset.num_episodes, "fps": dataset.fps, "stats": sorted(dataset.meta.stats), "frames": frames}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        for kind in ("video", "image"):
            write(Path(sys.argv[2]) / kind, kind)
    else:
        print(json.dumps(read(Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])))
