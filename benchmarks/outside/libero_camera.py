"""Write where LIBERO's agentview stands, as JSON for `sqap-vla serve --simulator-camera`.

python benchmarks/outside/libero_camera.py SUITE FOLDER        in LIBERO's own environment

It stands elsewhere in a kitchen than in a study, so a suite with several kinds of scene has several cameras:
FOLDER/camera_0.json, camera_1.json ..., and in tasks_0.json ... the names of the tasks that are seen through each, as
vla-eval's `tasks` takes them.
"""

import json
import sys
from pathlib import Path
from typing import Any

SIZE = 256  # of vla-eval's images


def main() -> None:
    suite_name, folder = sys.argv[1], Path(sys.argv[2])
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs.bddl_utils import get_problem_info

    known = benchmark.get_benchmark_dict()
    if suite_name not in known:
        sys.exit(f"no suite {suite_name!r} in LIBERO or LIBERO-PRO; there are {', '.join(sorted(known))}")
    suite = known[suite_name]()
    kinds: dict[str, list[Any]] = {}  # of scene -> tasks; each kind has its class and its camera in LIBERO
    files = Path(get_libero_path("bddl_files"))
    for task in map(suite.get_task, range(suite.n_tasks)):
        kind = get_problem_info(str(files / task.problem_folder / task.bddl_file))["problem_name"]
        kinds.setdefault(kind, []).append(task)
    for old in (*folder.glob("camera_*.json"), *folder.glob("tasks_*.json")):
        old.unlink()
    for number, tasks in enumerate(kinds.values()):
        camera = seen_from(files / tasks[0].problem_folder / tasks[0].bddl_file)
        (folder / f"camera_{number}.json").write_text(json.dumps(camera, indent=1) + "\n")
        names = sorted({task.language for task in tasks})
        (folder / f"tasks_{number}.json").write_text(json.dumps(names, indent=1) + "\n")


def seen_from(file: Path) -> dict[str, Any]:
    """Return pose and field of view of the camera in one task's scene."""
    from libero.libero.envs import OffScreenRenderEnv

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
    env.close()
    return values


if __name__ == "__main__":
    main()
