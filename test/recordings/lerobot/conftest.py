"""A small dataset, and a copy of it that a test may change."""

import shutil

import pytest
from tiny_datasets.factory import write_dataset


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("datasets") / "tiny")


@pytest.fixture
def dataset(written, tmp_path):
    return shutil.copytree(written, tmp_path / "copy")
