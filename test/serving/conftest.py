"""A server of policy doubles in the test's process, and a client of it."""

import pytest


@pytest.fixture(scope="module")
def served():
    from workers.served import Served  # needs a library that other tests of this folder do not

    with Served() as served:
        yield served


@pytest.fixture
def remote(served):
    from sqap_vla_ros.serving.remote import RemotePolicy

    remote = RemotePolicy(served.url)
    yield remote
    remote.close()
