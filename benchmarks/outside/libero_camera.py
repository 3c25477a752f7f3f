"""Write the pose and field of view of LIBERO's agentview as JSON, for `sqap-vla serve --simulator-camera`.

python benchmarks/outside/libero_camera.py SUITE OUT.json        in LIBERO's own environment
"""

import json
import sys
from pathlib import Path

SIZE = 256  # of vla-eval's images


def main() -> None:
    suite_name, out = sys.argv[1], Path(sys.argv[2])
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite = benchmark.get_benchmark_dict()[suite_name]()
    task = suite.get_task(0)
    file = Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file
    env = OffScreenRenderEnv(bddl_file_name=str(file), camera_heights=SIZE, camera_widths=SIZE)
    env.reset()
    sim = env.sim
    camera = sim.model.camera_name2id("agentview")
    values = {
        "position": sim.data.cam_xpos[camera].tolist(),
        "rotation": sim.data.cam_xmat[camera].tolist(),
        "fovy_deg": float(sim.model.cam_fovy[camera]),
        "width": SIZE,
        "height": SIZE,
    }
    out.write_text(json.dumps(values, indent=1) + "\n")
    env.close()


if __name__ == "__main__":
    main()
