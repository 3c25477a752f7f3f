"""Cost counted on the real modules at the published geometry."""

import pytest

from benchmarks.policy_macs import TEXT_TOKENS, gmacs
from sqap_vla_ros.compression.bops import Workload, macs
from sqap_vla_ros.policy.config import COGACT_BASE

# GMACs of CogACT-Base at 276 tokens, 10 DDIM steps with guidance
PUBLISHED = {
    "dino": 82.3,
    "siglip": 109.5,
    "projector": 18.3,
    "decoder linear": 1787.4,
    "decoder attention": 20.0,
    "action head": 29.1,
}


def test_modules_cost_what_is_published():
    counted = gmacs(COGACT_BASE, published=True)
    assert counted == pytest.approx(PUBLISHED, rel=0.01)
    assert sum(counted.values()) == pytest.approx(2046.5, rel=0.01)


def test_accounting_by_shapes_counts_what_is_executed():
    """`compression/bops.py` never runs the model; here the model says whether it is right."""
    executed = sum(gmacs(COGACT_BASE, published=False).values())
    by_shape = macs(Workload(COGACT_BASE, text_tokens=TEXT_TOKENS, as_published=False))
    assert sum(by_shape.values()) / 1e9 == pytest.approx(executed, rel=1e-3)
