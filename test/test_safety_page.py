"""The numbers of docs/safety.md are those of the code and of the scripts' results."""

import json
import re

import pytest
from places import ROOT

from sqap_vla_ros.contracts import NS_PER_S
from sqap_vla_ros.control import clock_monitor, settling
from sqap_vla_ros.control.arm import arm_watch
from sqap_vla_ros.control.camera.visibility import ALIKE, CELLS, LEAST_CONTRAST
from sqap_vla_ros.nodes.policy import commander, control_loop, parameters
from sqap_vla_ros.nodes.policy.sinks import joint, sink
from sqap_vla_ros.robot import braking, holding, safety

PAGE = " ".join((ROOT / "docs" / "safety.md").read_text().split())
RESULTS = ROOT / "benchmarks" / "results"
DEFAULTS = parameters.defaults()

# A sentence of the page with N for each number, and the numbers that stand there.
NUMBERS = [
    ("returns slowly (N rad/s, N m/s)", (holding.RETURN_JOINT_SPEED, holding.RETURN_LINEAR_SPEED)),
    ("by more than N mm or N rad since it came to rest", (1e3 * commander.LED_M, commander.LED_RAD)),
    ("a slow arm stops within N ms", (1e3 * braking.QUICKEST_S,)),
    ("`command_rate` (N Hz)", (DEFAULTS["command_rate"],)),
    ("the end for N s; up to N s longer", (sink.REPEAT_NS / NS_PER_S, sink.UNDELIVERED_NS / NS_PER_S)),
    ("a hold, every N ms until it is acknowledged, N s at most", (joint.RESEND_NS / 1e6, joint.RESENT_NS / NS_PER_S)),
    ("pause of the node, up to N s", (control_loop.PAUSE_S,)),
    ("by N periods (N s", (clock_monitor.PERIODS, clock_monitor.PERIODS / DEFAULTS["command_rate"])),
    ("`executor_timeout_s` (N s)", (DEFAULTS["executor_timeout_s"],)),
    ("for it within N s | nothing moves until it was good for N s", (settling.WITHIN_S, settling.GOOD_S)),
    ("joint points: N mm outside", (1e3 * safety.BETWEEN_POINTS_M,)),
    ("rest within N rad (", (joint.MAX_START_AWAY_AT_REST,)),
    ("N mm and N rad for an arm that stands", (1e3 * arm_watch.AGREE_M, arm_watch.AGREE_RAD)),
    ("by what it does in N s", (arm_watch.STAMPS_S,)),
    ("N mm and N rad at most", (1e3 * arm_watch.MOVING_M, arm_watch.MOVING_RAD)),
    ("N % of its N × N cells differ from their median by N of", (ALIKE, CELLS, CELLS, LEAST_CONTRAST)),
    ("jumps forward by less than N s", (clock_monitor.SIMULATED_JUMP_S,)),
    ("while the node runs, by N s or more", (clock_monitor.JUMP_S,)),
]


@pytest.mark.parametrize(("sentence", "numbers"), NUMBERS)
def test_a_number_of_the_page_is_that_of_the_code(sentence, numbers):
    found = re.search(r"\b\d[\d.]*\b".join(map(re.escape, re.split(r"\bN\b", sentence))), PAGE, re.I)
    if found is None:
        pytest.skip("the page says it in other words")
    said = re.findall(r"(?<![\w.])\d[\d.]*", found[0])
    assert [float(number) for number in said] == pytest.approx(numbers)


def test_the_page_has_most_of_these_sentences():
    begins = [re.split(r"\bN\b", sentence)[1].strip() for sentence, _ in NUMBERS]
    assert sum(begin in PAGE for begin in begins) > 0.7 * len(NUMBERS)


def test_the_campaign_of_the_page_is_the_recorded_one():
    campaign = json.loads((RESULTS / "safety_campaign.json").read_text())
    counts = " ".join(f"{campaign[name]:,} {name}" for name in ("sequences", "commands", "holds"))
    said = re.search(r"\(([\d,]+ sequences), ([\d,]+ commands), ([\d,]+ holds)\)", PAGE)
    assert said is not None
    assert " ".join(said.groups()) == counts
    assert campaign["violations"] == []


def test_the_damaged_jpegs_of_the_page_are_those_that_were_measured():
    measured = json.loads((RESULTS / "damaged_jpegs.json").read_text())
    assert f"{sum(group['good'] for group in measured.values() if 'good' in group):,} good pictures" in PAGE
