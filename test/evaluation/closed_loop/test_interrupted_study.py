"""A study through worker processes: one method that fails, and a run that was killed, which ends as it would have."""

import pytest

from sqap_vla_ros.evaluation.closed_loop.run_study import run_units
from sqap_vla_ros.evaluation.closed_loop.study import EPISODES, Method, Store, Unit
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.vocabulary import TaskFamily

SUITE = "visual_matching"
PICK, OPEN = TaskFamily.PICK, TaskFamily.OPEN_DRAWER
UNIT = Unit(Method("fp32", "fp32", "micro"), SUITE, 1, (PICK, OPEN), 1)


def without_times(episode):
    return {name: value for name, value in episode.items() if name != "inference_ms"}


def test_a_run_is_stored_and_resumed(tmp_path):
    """The second method cannot be loaded, which does not stop the first."""
    env = TabletopEnv(shadows=False, antialiasing=False)
    try:
        env.reset(0)
        env.render()
    except RenderingUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    finally:
        env.close()
    broken = tmp_path / "broken.yaml"
    broken.write_text("pruning: {selector: sqap, parameters: {prune_layer: 99}}\n")
    units = [UNIT, Unit(Method("broken", str(broken), "micro"), SUITE, 1, (OPEN,))]
    problems = run_units(units, tmp_path, reference=UNIT.method, show=False)
    assert list(problems) == ["broken"]
    assert "layer 99" in problems["broken"]
    assert "\n" not in problems["broken"]  # a sentence, no traceback
    store = Store(tmp_path)
    episodes = store.episodes("fp32")
    assert {(e["family"], e["seed"]) for e in episodes} == {("pick", 0), ("open_drawer", 0)}
    assert all(sum(d["distances"]) < 1e-3 for d in store.deviations("fp32"))
    assert run_units([UNIT], tmp_path, reference=UNIT.method, show=False) == {}
    assert store.episodes("fp32") == episodes
    costs = store.methods()["fp32"]["costs"]
    assert (costs["bops_paper"], costs["bops_bit_product_7b"], costs["bits_per_parameter"]) == (1.0, 1.0, 32.0)
    # killed in the middle of a line
    stored = tmp_path / EPISODES / "fp32.jsonl"
    text = stored.read_text()
    stored.write_text(text[: text.index("\n") + 30])
    run_units([UNIT], tmp_path, reference=UNIT.method, show=False)
    assert list(map(without_times, store.episodes("fp32"))) == list(map(without_times, episodes))
