"""Two ranks measure what a run on them will take."""

import json

from tutelage.sizing.profiles import read_profile


def test_two_ranks_measure_side_by_side_and_the_first_one_tells(pair, written, tmp_path):
    config, file = written(), tmp_path / "here.json"
    words = ("plan", "-c", config, "--hosts", "1", "--devices-per-host", "2", "--json")
    words += ("--device-memory-gb", "8")
    (status, told), (other, silent) = pair.run(*words, "--measure", file)
    assert (status, other) == (0, 0), told + silent
    link = read_profile(file).link
    assert link is not None
    assert 0 < link.latency_s < 1
    assert 0 < link.byte_s < 1e-3
    assert link.crowding >= 1
    step = json.loads(told[told.index("{") : told.rindex("}") + 1])["hosts"]["phase_s"]
    assert step["messages"] >= 8 * link.latency_s
    assert step["update"] > 0
    assert "{" not in silent
