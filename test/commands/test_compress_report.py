"""What `compress --report` compares on: other observations than those that calibrate, or words that say otherwise."""

import json

import pytest
from PIL import Image

from sqap_vla_ros.cli import main
from sqap_vla_ros.compression.calibration import synthetic_observations
from sqap_vla_ros.compression.files.storage import CompressedFile


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return folders of six and of twelve pictures, by their number."""
    made = {}
    for count in (6, 12):
        made[count] = tmp_path_factory.mktemp(f"pictures{count}")
        for index, observation in enumerate(synthetic_observations(count, seed=3)):
            Image.fromarray(observation.image).save(made[count] / f"{index:02d}.png")
        (made[count] / "instructions.txt").write_text("pick up the red can\n")
    return made


def compress(folder, out, *more, recipe="w4a4"):
    arguments = ["--recipe", recipe, "--calibration", str(folder), "--out", str(out), *more]
    return main(["compress", "--checkpoint", "micro", *arguments])


def test_pictures_that_all_calibrate_are_not_called_held_out(folders, tmp_path, capsys, monkeypatch):
    titles = []

    def savefig(figure, path, **_):
        path.touch()
        titles.extend(axes.get_title() for axes in figure.axes)

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    report = tmp_path / "report"
    assert compress(folders[6], tmp_path / "p.safetensors", "--report", str(report)) == 0
    printed = capsys.readouterr()
    assert f"{report / 'report.png'}: rms action error on the calibration's own observations (6) 0." in printed.out
    assert f"{report / 'bits.png'}: widths and sizes by linear\n" in printed.out
    assert "held" not in printed.out
    assert "note: 6 observations calibrate\n" in printed.err
    assert f"because {folders[6]} has no others: give more of them, or fewer --observations" in printed.err
    summary = json.loads((report / "report.json").read_text())
    assert summary["calibrated_on"]["observations"] == 6
    assert "held_out" not in summary
    assert any(title.startswith("actions on the calibration's own observations, rms error 0.") for title in titles)
    assert not any("held-out" in title for title in titles)


def test_a_report_changes_nothing_about_the_calibration(folders, tmp_path, capsys):
    report = tmp_path / "report"
    plain, reported = tmp_path / "plain.safetensors", tmp_path / "reported.safetensors"
    assert compress(folders[12], plain, "--observations", "5") == 0
    assert "note:" not in capsys.readouterr().err
    assert compress(folders[12], reported, "--observations", "5", "--report", str(report)) == 0
    printed = capsys.readouterr()
    assert plain.read_bytes() == reported.read_bytes()
    assert CompressedFile(plain).header.calibration["observations"] == 5
    assert "rms action error on 7 held-out observations 0." in printed.out
    assert json.loads((report / "report.json").read_text())["held_out"]["observations"] == 7


@pytest.mark.parametrize("count", ["4", "9"])
def test_who_fits_and_who_judges_is_said_with_what_is_advisable(folders, tmp_path, capsys, count):
    """A dry run says so too; a plain recipe says nothing about it."""
    out, counted = tmp_path / "p.safetensors", ("--observations", count, "--dry-run")
    assert compress(folders[12], out, *counted, recipe="qvla_w3a8") == 0
    said = capsys.readouterr().err
    fit = {"4": 2, "9": 5}[count]
    roles = f"{fit} fit the rounding, {int(count) - fit} judge the rows' widths"
    assert f"note: {count} observations calibrate: {roles}; 24 to 48 are enough (--observations)\n" in said
    assert compress(folders[12], out, *counted, "--report", str(tmp_path / "r"), recipe="w4a4") == 0
    printed = capsys.readouterr()
    assert "enough" not in printed.err
    left = min(8, 12 - int(count))
    assert f"report              in {tmp_path / 'r'}, on {left} held-out observations\n" in printed.out
