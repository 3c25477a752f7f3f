"""One policy_node process for all tests of a file, brought home before each."""

import pytest
from policy_node_rig import Rig
from sqap_vla_ros.msg import PolicyStatus


@pytest.fixture(scope="module")
def process():
    with Rig() as rig:
        rig.wait_for_state(PolicyStatus.DISABLED)
        yield rig


@pytest.fixture
def rig(process: Rig) -> Rig:
    process.home()
    return process
