"""Predict with openpi's own client: python ask_openpi.py ADDRESS PATHS…; prints JSON. Needs openpi-client only."""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

IMAGE = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)
answers = []
for path in sys.argv[2:]:
    policy = WebsocketClientPolicy(sys.argv[1] + path)
    observation = {"observation/image": IMAGE, "observation/state": np.zeros(8), "prompt": "pick the cube"}
    first = policy.infer(observation)
    try:
        policy.infer({"prompt": "pick the cube"})
        error = ""
    except RuntimeError as refused:
        error = str(refused)
    second = policy.infer({**observation, "observation/wrist_image": IMAGE})
    answers.append(
        {
            "metadata": {name: policy.get_server_metadata()[name] for name in ("recipe", "horizon")},
            "actions": first["actions"].tolist(),
            "error": error,
            "again": bool((second["actions"] == first["actions"]).all()),
            "timings": sorted(second["server_timing"]),
        }
    )
print(json.dumps(answers))
