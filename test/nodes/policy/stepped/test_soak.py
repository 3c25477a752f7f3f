"""A short version of benchmarks/soak.py, and what it would see."""

import numpy as np
import pytest

from benchmarks import soak


def test_nothing_grows_within_some_seconds_of_missions_and_faults():
    samples = soak.stepped("joint", minutes=0.3, every_s=3.0)
    trends = soak.judge(samples)
    assert {name for name, found in trends.items() if not found.level} - {"rss_mib", "transforms"} == set()
    assert sum(sample["commands"] for sample in samples) > 20
    assert samples[-1]["containers"]["ToolMonitor._believed"] > 0


class Leaking:
    """Stands for an object of the package."""

    def __init__(self, count: int) -> None:
        self.inside = {"list": [object()] * count}
        self.myself = self


Leaking.__module__ = f"{soak.OWN}leaking"


def test_a_container_that_grows_is_seen():
    assert soak.containers(Leaking(7)) == {"Leaking.inside": 8}
    samples = [{"entries": sum(soak.containers(Leaking(count)).values())} for count in range(60)]
    assert not soak.judge(samples)["entries"].level


def test_a_trend_is_that_of_the_line_after_settling():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.linspace(0.0, 50.0, 6), 50.0 + rng.normal(size=54) * 0.1])
    assert soak.trend(values, 0.5).level
    rising = soak.trend(values + np.arange(60) * 0.1, 0.5)
    assert not rising.level
    assert rising.rise == pytest.approx(5.3, abs=0.2)
    with pytest.raises(ValueError, match="three samples"):
        soak.trend([1.0, 2.0], 0.5)
