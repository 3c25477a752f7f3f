"""Files of a study that were damaged between two runs."""

import json

import pytest

from sqap_vla_ros.evaluation.closed_loop.study import EPISODES, ClosedLoopError, Store


def row(seed, success, **more):
    common = {"suite": "visual_matching", "family": "pick", "seed": seed, "success": success, "steps": 20, "chunks": 5}
    return common | {"reason": "", "path_m": 1.0, "jerk_m_s3": 2.0, "inference_ms": 9.0} | more


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (json.dumps(row(2, "maybe")), "success must be true or false, got 'maybe'"),
        (json.dumps(row([2], True)), r"seed must be a whole number, got \[2\]"),
        (json.dumps(row(2, True, path_m="far")), "path_m must be a finite number, got 'far'"),
        ('{"suite": "visual_matching"}', "lacks 'family', 'seed'"),
        ("[" * 9000, "recursion"),
        ("5", "it is no JSON object"),
    ],
)
def test_a_line_that_is_no_episode_is_named(tmp_path, line, said):
    store = Store(tmp_path)
    store.append("fp32", EPISODES, [row(0, True)])
    with (tmp_path / EPISODES / "fp32.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ClosedLoopError, match=rf"fp32\.jsonl, line 2: .*{said}.*: remove the line and run again"):
        store.episodes("fp32")
