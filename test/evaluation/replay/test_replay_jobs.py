import pytest

from sqap_vla_ros.evaluation.replay.jobs import compression_of
from sqap_vla_ros.serving.worker import WorkerConfig


@pytest.mark.parametrize(
    ("checkpoint", "recipe", "calibration"),
    [
        ("micro", "fp32", "nothing, it needs none"),
        ("micro", "w4a4", "8 made-up scenes, which represent no task"),
        ("tabletop", "w4a4", "48 simulated scenes, the scripted expert at work"),
        ("elsewhere", "w4a4", "scenes of its own geometry"),
    ],
)
def test_the_report_says_what_a_recipe_was_calibrated_on(checkpoint, recipe, calibration):
    assert compression_of(WorkerConfig(checkpoint, recipe))["calibration"] == calibration
