import json

import numpy as np
import pytest
from PIL import Image

from sqap_vla_ros.cli import main
from sqap_vla_ros.commands.tokens import parse_selector
from sqap_vla_ros.evaluation.selectors import side_by_side


def test_inspect_tokens_draws_a_panel_for_each_selector(tmp_path, capsys):
    picture = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(picture)
    out = tmp_path / "tokens.png"
    arguments = ["inspect-tokens", "--image", str(picture), "--gripper-pixel", "60", "50", "--out", str(out)]
    status = main([*arguments, "--selectors", "sqap", "tome", "fastv:ratio=0.5", "visionzip"])
    assert status == 0
    printed = capsys.readouterr().out
    assert "kept 154 of 256 before layer 3 (attention" in printed
    assert "kept 128 of 256 before layer 2" in printed
    assert "gripper in patch (8, 7)" in printed
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * 96 + 4, 3 * 128 + 2 * 4, 3)


def test_bad_selector_is_named_before_anything_is_loaded(tmp_path, capsys):
    picture = tmp_path / "scene.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    assert main(["inspect-tokens", "--image", str(picture), "--selectors", "sqap:ratio=2"]) == 2
    assert "ratio must be in [0, 1)" in capsys.readouterr().err
    assert main(["inspect-tokens", "--image", str(picture), "--selectors", "vla_cache"]) == 2
    assert "'vla_cache' keeps every token: there is nothing to draw" in capsys.readouterr().err


def test_bops_prints_the_papers_share(capsys):
    assert main(["bops", "--recipe", "sqap", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["relative"]["paper"] == pytest.approx(0.263, abs=5e-4)
    assert main(["bops", "--recipe", "sqap"]) == 0
    assert "26.3%" in capsys.readouterr().out


def test_selector_text():
    assert parse_selector("sqap") == ("sqap", {})
    assert parse_selector("sqap:ratio=0.6,fill=grid,ring_radius=null") == (
        "sqap",
        {"ratio": 0.6, "fill": "grid", "ring_radius": None},
    )
    with pytest.raises(ValueError, match="'ratio' is not key=value"):
        parse_selector("sqap:ratio")


def test_panels_keep_their_pixels():
    panels = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    sheet = side_by_side(panels, columns=2, gap=1)
    assert sheet.shape == (9, 13, 3)
    assert [int(sheet[r, c, 0]) for r, c in ((0, 0), (0, 7), (5, 0), (5, 7))] == [10, 20, 30, 40]
