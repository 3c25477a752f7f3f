"""The comparison with other runtimes: processes taken in turn, and what the table says of those that are missing."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FAKE = """
import numpy as np
from peer_layers.stack import Contender, serve

def fine(cache):
    print("a library's chatter")
    return Contender(lambda x: lambda: 2 * x, lambda y: y, "repacked")

def broken(cache):
    raise OSError("no such instruction\\nand more")

serve({"fine": fine, "broken": broken}, {"fake": "1.0"})
"""


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("peers")
    for name in ("peers", "peer_layers.stack", "peer_layers"):
        sys.modules.pop(name, None)


@pytest.fixture
def fake(peers, monkeypatch, tmp_path):
    """A peer whose layers double the tokens, and a reference that expects the same."""
    scripts = tmp_path / "peer_layers"
    scripts.mkdir()
    (scripts / "stack.py").symlink_to(BENCHMARKS / "peer_layers" / "stack.py")
    (scripts / "fake.py").write_text(FAKE)
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "reference_277.npy", 2 * peers.tokens(277))
    monkeypatch.setattr(peers, "HERE", tmp_path)
    return peers.Peer("fake", "fake runtime")


def test_variants_take_turns_and_a_broken_one_says_why(peers, fake, tmp_path):
    rows = {}
    with peers.started([fake], tmp_path, threads=1) as (processes, missing):
        contenders = peers.loaded(processes, tmp_path, rows)
        assert list(peers.take_turns(contenders, 2, rows)) == [0, 1]
    assert not missing
    assert [variant for _, variant in contenders] == ["fine"]
    fine = rows["fake runtime: fine"]
    assert fine["relative_error"] == 0.0
    assert {count: len(times) for count, times in fine["ms_a_layer"].items()} == {"277": 4, "175": 4}
    assert rows["fake runtime: broken"]["error"] == "OSError: no such instruction"
    lines = peers.table(rows)
    assert lines[2].startswith("| fake runtime: fine (repacked) | ")
    assert lines[-1].startswith("| fake runtime: broken | OSError: no such instruction |")
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_peer_that_cannot_be_installed_or_started_is_missing(peers, fake, monkeypatch, tmp_path):
    def refuse(peer, cache):
        if peer.packages:
            raise subprocess.CalledProcessError(1, "pip")
        return Path(sys.executable)

    monkeypatch.setattr(peers, "environment", refuse)
    others = [peers.Peer("absent", "absent runtime", ("absent",)), peers.Peer("nowhere", "runtime without a script")]
    with peers.started([*others, fake], tmp_path, threads=1) as (processes, missing):
        assert [process.peer.name for process in processes] == ["fake"]
    assert missing["absent runtime"] == "not installed: pip ended with status 1"
    assert missing["runtime without a script"].startswith("does not start: the process ended with status 2")


def test_results_that_are_not_there_are_named(peers, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["peers", "--draw", "--out", str(tmp_path / "missing.json")])
    with pytest.raises(SystemExit):
        peers.main()
    assert "missing.json: no such file" in capsys.readouterr().err
