import numpy as np
import pytest
import torch

from sqap_vla_ros.compression.accelerators.table import accelerate
from sqap_vla_ros.compression.accelerators.vla_cache import (
    VlaCache,
    VlaCachePolicy,
    patchify,
    reuse_schedule,
    static_patches,
)
from sqap_vla_ros.contracts import Observation
from sqap_vla_ros.policy.micro.policy import micro_policy
from sqap_vla_ros.pruning import make_selector

STEP_NS = 200_000_000
EVERYTHING = VlaCache(static=256, relevant=0, layers=(1, 2, 3, 4, 5), growth=1.0)


def picture(seed=0):
    return np.random.default_rng(seed).integers(1, 255, (224, 224, 3), dtype=np.uint8)


def at(step, image, instruction="pick up the red block"):
    return Observation(image, step * STEP_NS, instruction)


def changed(image, patch, seed=9):
    row, col = divmod(patch, 16)
    other = image.copy()
    other[14 * row : 14 * row + 14, 14 * col : 14 * col + 14] = np.random.default_rng(seed).integers(
        0, 255, (14, 14, 3), dtype=np.uint8
    )
    return other


def test_first_frame_and_nothing_reused_equal_the_plain_policy():
    plain, cached = micro_policy(seed=0), VlaCachePolicy(micro_policy(seed=0))
    for step in range(3):  # every frame entirely new
        observation = at(step, picture(step))
        expected, actual = plain.predict(observation), cached.predict(observation)
        assert len(cached.decoder.reused) == 0
        np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-5)


def test_everything_static_equals_the_plain_policy():
    plain, cached = micro_policy(seed=0), VlaCachePolicy(micro_policy(seed=0), EVERYTHING)
    image = picture()
    for step in range(3):
        expected, actual = plain.predict(at(step, image)), cached.predict(at(step, image))
        np.testing.assert_allclose(actual.normalized, expected.normalized, atol=1e-5)
    assert len(cached.decoder.reused) > 128


def test_a_small_change_is_recomputed_and_the_rest_reused():
    cached, plain = VlaCachePolicy(micro_policy(seed=0), EVERYTHING), micro_policy(seed=0)
    image = picture()
    cached.predict(at(0, image))
    moved = changed(image, 37)
    chunk = cached.predict(at(1, moved))
    assert 37 not in cached.decoder.reused
    assert len(cached.decoder.reused) > 128
    exact, stale = plain.predict(at(1, moved)).normalized, plain.predict(at(0, image)).normalized
    assert np.abs(chunk.normalized - exact).max() < np.abs(stale - exact).max()


def test_a_patch_is_compared_with_the_frame_behind_its_cache_entry():
    """Drift too slow to be seen from frame to frame is seen against the reference."""
    policy = VlaCachePolicy(micro_policy(seed=0), EVERYTHING)
    image = picture()
    target = picture(50)
    reused_after = []
    for step in range(7):
        mix = step / 6 * 0.3
        frame = np.rint((1 - mix) * image + mix * target).astype(np.uint8)
        policy.predict(at(step, frame))
        reused_after.append(len(policy.decoder.reused))
        assert policy._reference is not None
        current = patchify(frame, 14)
        renewed = np.setdiff1d(np.arange(256), policy.decoder.reused)
        np.testing.assert_array_equal(policy._reference[renewed], current[renewed])
        for patch in policy.decoder.reused:
            reference = policy._reference[patch]
            cosine = reference @ current[patch] / np.linalg.norm(reference) / np.linalg.norm(current[patch])
            assert cosine >= 0.996
    assert max(reused_after) > 0
    assert not np.allclose(policy._reference, patchify(image, 14))


def test_never_compares_a_frame_with_itself():
    policy = VlaCachePolicy(micro_policy(seed=0), EVERYTHING)
    policy.predict(at(0, picture(0)))
    policy.predict(at(1, picture(1)))
    assert len(policy.decoder.reused) == 0  # comparing frame 1 with itself would reuse nearly all of it


def test_task_relevant_tokens_are_never_reused():
    policy = VlaCachePolicy(micro_policy(seed=0), VlaCache(static=256, relevant=120, layers=(1,)))
    image = picture()
    policy.predict(at(0, image))
    relevant = set(torch.argsort(policy.decoder._relevance, descending=True, stable=True)[:120].tolist())
    policy.predict(at(1, image))
    assert len(policy.decoder.reused) > 0
    assert not relevant & set(policy.decoder.reused.tolist())


@pytest.mark.parametrize("event", ["instruction", "backwards", "gap", "reset"])
def test_cache_is_emptied_by_a_new_instruction_a_jump_in_time_and_reset(event):
    policy = VlaCachePolicy(micro_policy(seed=0), EVERYTHING)
    image = picture()
    policy.predict(at(10, image))
    policy.predict(at(11, image))
    assert len(policy.decoder.reused) > 0
    following = {
        "instruction": at(12, image, "push the blue cup"),
        "backwards": at(3, image),
        "gap": at(40, image),
        "reset": at(12, image),
    }[event]
    if event == "reset":
        policy.reset()
    policy.predict(following)
    assert len(policy.decoder.reused) == 0


def test_a_failed_prediction_leaves_no_half_written_cache(monkeypatch):
    policy = VlaCachePolicy(micro_policy(seed=0), EVERYTHING)
    image = picture()
    policy.predict(at(0, image))
    with monkeypatch.context() as patched:
        patched.setattr(policy.policy.model, "sample", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            policy.predict(at(1, image))
    policy.predict(at(2, image))
    assert len(policy.decoder.reused) == 0


def test_static_patches_come_most_similar_first():
    reference = np.abs(np.random.default_rng(0).normal(100, 20, (6, 588))).astype(np.float32)
    noise = np.asarray([0.0, 1.0, 40.0, 0.5, 2.0, 0.1])[:, None] * np.random.default_rng(1).normal(size=(6, 588))
    found = static_patches((reference + noise).astype(np.float32), reference, 0.996, 3)
    assert found.tolist() == [0, 5, 3]
    black = np.zeros((1, 588), dtype=np.float32)
    assert static_patches(black, black, 0.996, 3).tolist() == [0]


def test_reuse_schedule_damps_rises():
    share = reuse_schedule([3.0, 1.0, 2.0, 1.0], 0.55)
    assert share == pytest.approx([0.0, 0.55, 0.5, 0.5 + 0.55 * 0.5, 0.775], abs=1e-9)


def test_refusals_name_the_reason():
    with pytest.raises(ValueError, match="cannot be combined with the selector 'sqap'"):
        VlaCachePolicy(micro_policy(seed=0, selector=make_selector("sqap")))
    with pytest.raises(ValueError, match="similarity"):
        VlaCache(similarity=2.0)
    policy = accelerate(micro_policy(seed=0), VlaCache(static=100))
    assert policy.settings.static == 100
    assert policy.info.selector == "vla_cache"
    assert policy.info.stateful  # so that an interrupted replay starts the recording again
