"""The kinds of recordings that can be replayed, and the one place that opens them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.recordings.frames import Recording
from sqap_vla_ros.recordings.lerobot.dataset import DatasetFrames
from sqap_vla_ros.recordings.lerobot.layout import INFO, DatasetError, dataset_problem
from sqap_vla_ros.recordings.lerobot.spec import DatasetSpec

if TYPE_CHECKING:
    from sqap_vla_ros.nodes.bags.spec import ReplaySpec

    RecordingSpec = ReplaySpec | DatasetSpec


@contextmanager
def open_recording(path: Path, spec: RecordingSpec) -> Iterator[Recording]:
    """Open a bag or a LeRobot dataset, as its specification says. Raises BagError or DatasetError.

    Only bags need ROS messages.
    """
    if isinstance(spec, DatasetSpec):
        yield DatasetFrames(path, spec)
        return
    if (problem := dataset_problem(path.expanduser())) is not None:
        raise DatasetError(problem)
    from sqap_vla_ros.nodes.bags.bag import Bag
    from sqap_vla_ros.nodes.bags.observations import BagObservations
    from sqap_vla_ros.nodes.bags.store import NoBag

    with ExitStack() as opened:
        try:
            bag = opened.enter_context(Bag(path))
        except NoBag as error:
            raise NoBag(f"{error}; the folder of a LeRobot dataset, which holds {INFO}, is read too") from error
        yield BagObservations(bag, spec)
