"""What a recording says about itself is quoted, as far as it is short and printable."""

from sqap_vla_ros.recordings.frames import ReplayCounters, ReplayFrame


def test_a_problem_quotes_a_recording_safely_and_briefly():
    text = "no transform cam\n\x1b[31m" + "c" * 200_000
    counters = ReplayCounters()
    counters.count_problem("transform missing", text)
    for shown in (ReplayFrame(0, 0, 0.0, None, text).problem, counters.reasons["transform missing"]):
        assert shown.startswith(r"no transform cam\n\x1b[31mc")
        assert len(shown) < 700
