"""Demonstrations: what is asked makes sense, what is recorded is what a batch says, and shards are reproducible."""

import numpy as np
import pytest

from sqap_vla_ros.policy.micro.tokenizer import micro_tokenizer
from sqap_vla_ros.simulation.environment import TabletopEnv
from sqap_vla_ros.simulation.experts import expert, plan_actions
from sqap_vla_ros.simulation.gl import RenderingUnavailableError
from sqap_vla_ros.simulation.vocabulary import TaskFamily
from sqap_vla_ros.training.collection import COVER, LABELS, CollectionConfig, collect_shards, expert_shard
from sqap_vla_ros.training.dataset import TabletopDemonstrations, tabletop_statistics
from sqap_vla_ros.training.labels import FAMILIES, Asked, draw_tasks, expert_chunk, sensible_tasks

SMALL = CollectionConfig(shards=1, frames=14)


@pytest.fixture(scope="module")
def env() -> TabletopEnv:
    return TabletopEnv()


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expert")
    try:
        values = expert_shard(SMALL, 0)
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    path = folder / "shard0000"
    path.mkdir()
    for name, value in values.items():
        np.save(path / f"{name}.npy", value)
    return path, values


def test_candidates_fit_the_scene(env):
    seen = set()
    for seed in range(40):
        env.reset(seed)
        layout = env.world.layout
        found = sensible_tasks(env.world)
        assert len(set(found)) == len(found)
        for asked in found:
            seen.add(asked.family)
            if asked.family is TaskFamily.PLACE_IN_BOWL:
                assert layout.bowl_xy_m is not None
            if asked.family in (TaskFamily.CLOSE_DRAWER, TaskFamily.PLACE_IN_DRAWER):
                assert layout.drawer_m > 0.1
            if asked.family is TaskFamily.OPEN_DRAWER:
                assert layout.drawer_m < 0.1
            state = env.world.state(asked.target, asked.reference)
            assert not asked.task(layout).succeeded(state)
    assert seen == set(TaskFamily)


def test_what_is_held_is_what_is_asked_about(env):
    env.reset(3, TaskFamily.PICK)
    while not env.succeeded:
        env.step(expert(env.task, env.state))
    assert {asked.target for asked in sensible_tasks(env.world)} == {0}
    assert not {TaskFamily.OPEN_DRAWER, TaskFamily.CLOSE_DRAWER} & {asked.family for asked in sensible_tasks(env.world)}


def test_another_objects_chunk_is_that_objects_plan(env):
    env.reset(1, TaskFamily.PICK)
    layout = env.world.layout
    asked = Asked(TaskFamily.PICK, 1, 0)
    state = env.world.state(1, 0)
    np.testing.assert_allclose(state.target.xyz_m[:2], layout.objects[1].xy_m, atol=2e-3)
    np.testing.assert_allclose(expert_chunk(env.world, asked), plan_actions(asked.task(layout), state), atol=1e-6)
    own = expert_chunk(env.world, Asked(TaskFamily.PICK, 0, 1))
    assert np.abs(own - expert_chunk(env.world, asked)).max() > 0.01


def test_draw_gives_the_own_task_first_and_always_as_many(env):
    rng = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed)
        own = Asked(env.task.family, 0, 1)
        drawn = draw_tasks(env.world, own, LABELS, rng)
        assert drawn[0] == own
        assert len(drawn) == LABELS
        assert len({asked.task(env.world.layout) for asked in drawn}) > 1


def test_a_shard_is_reproducible_and_collected_once(shard, tmp_path):
    _, values = shard
    calls = []

    def make(config, number):
        calls.append(number)
        return {"image": np.full((2, 2), number)}

    config = CollectionConfig(shards=2, frames=2)
    (tmp_path / "shard0001").mkdir()
    (tmp_path / "shard0000.partial").mkdir()  # of a run that was killed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sqap_vla_ros.training.collection.worker_pool", _Inline)
        collect_shards(tmp_path, config, jobs=1, make=make, show=False)
    assert calls == [0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard0000", "shard0001"]
    again = expert_shard(SMALL, 0)
    for name in ("chunk", "asked", "cover", "image"):
        np.testing.assert_array_equal(again[name], values[name])
    assert np.abs(expert_shard(SMALL, 1)["objects"] - values["objects"]).max() > 0.01


class _Inline:
    """Runs in this process, so that the test sees the calls."""

    def __init__(self, *_, **__): ...

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*arguments))
        return future


def test_patches_cover_what_the_picture_shows(shard):
    _, values = shard
    cover = values["cover"].astype(float) / 255
    objects = cover[..., :5].sum(axis=1)  # patches' worth of each object
    present = values["kinds"][..., 0] >= 0
    assert objects[~present].max() == 0
    assert (objects[present] > 0.3).mean() > 0.9  # a few are hidden by the hand
    assert cover[..., COVER.index("cabinet")].sum(axis=1).min() > 3
    assert (cover[..., COVER.index("handle")].max(axis=1) > 0.8).all()


def test_a_batch_says_what_the_shard_holds(shard):
    path, values = shard
    tokenize = micro_tokenizer()
    data = TabletopDemonstrations([path], tokenize)
    batch = data.batch(np.array([3, 0]))
    np.testing.assert_array_equal(batch.image[1].permute(1, 2, 0), values["image"][0])
    physical = tabletop_statistics().unnormalize(batch.chunk[0].numpy())
    expected = values["chunk"][3].clip(-0.05, None)
    np.testing.assert_allclose(physical[..., :3], expected[..., :3].clip(-0.05, 0.05), atol=1e-5)
    np.testing.assert_array_equal(physical[..., 6], values["chunk"][3][..., 6])
    for row, frame in enumerate((3, 0)):
        for column in range(LABELS):
            family, target, reference = values["asked"][frame, column]
            length = batch.prompts.lengths[row, column]
            ids = [*batch.prompts.prefix.tolist(), *batch.prompts.own[row, column, :length].tolist()]
            words = _words(FAMILIES[family], values["kinds"][frame], target, reference)
            assert ids == tokenize(words)
    assert batch.look.sum(dim=-1)[batch.looked > 0].sub(1).abs().max() < 1e-3


def _words(family, kinds, target, reference) -> str:
    from sqap_vla_ros.simulation.scene import COLOURS, SHAPES, ObjectKind
    from sqap_vla_ros.simulation.tasks import Task

    def kind(slot):
        return ObjectKind(list(COLOURS)[kinds[slot][0]], list(SHAPES)[kinds[slot][1]])

    return Task(family, kind(target), kind(reference)).instruction


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"some of visual_matching, .*got moon"):
        CollectionConfig(variations=("moon",))
    with pytest.raises(ValueError, match="must be positive, got 0"):
        CollectionConfig(shards=0)
    with pytest.raises(ValueError, match="no shards"):
        TabletopDemonstrations([], micro_tokenizer())
