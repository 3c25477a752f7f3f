"""Policies that are compressed once and kept in the user's cache."""

from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.kept import KeptPolicies
from sqap_vla_ros.compression.load import load_policy, load_uncompressed
from sqap_vla_ros.compression.recipe import load_recipe


def test_a_kept_policy_that_was_cut_off_is_made_anew(tmp_path):
    recipe, drawn = load_recipe("w4a4"), []

    def observe(count):
        drawn.append(count)
        return synthetic_observations(count)

    def file():
        return KeptPolicies(tmp_path).file(load_uncompressed("micro", recipe), recipe, "noise", 2, observe)

    first = file()
    whole = first.read_bytes()
    assert file() == first
    assert drawn == [2]
    first.write_bytes(whole[:5000])
    assert file() == first
    assert drawn == [2, 2]
    assert first.stat().st_size == len(whole)
    load_policy(str(first))


def test_progress_counts_what_its_stage_names(tmp_path):
    """Others show it as "stage: done of total"."""
    said = []
    kept = KeptPolicies(tmp_path, lambda stage, done, total: said.append(f"{stage}: {done} of {total}"))
    recipe = load_recipe("w4a4")
    kept.file(load_uncompressed("micro", recipe), recipe, "noise", 2, synthetic_observations)
    assert said[:2] == ["drawing observations: 0 of 2", "drawing observations: 2 of 2"]
    assert said[-2:] == ["writing files: 0 of 1", "writing files: 1 of 1"]
