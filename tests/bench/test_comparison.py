"""`clipfast bench compare`: what is a change and what is noise, on recorded rounds."""

import copy
import json
from pathlib import Path

import pytest
from clipfast_bench.harness.comparison import FASTER, NOISE, SLOWER, compared, read

from clipfast.cli import main
from clipfast.errors import UserError

RESULTS = Path(__file__).parents[2] / "bench" / "results"
RECORDED = RESULTS / "cpu-2-cores-losses.json"
FLOOR = 0.03


@pytest.fixture
def halves():
    """A recorded run's rounds, dealt to two runs in turn: the same code, the same machine."""
    record = read(RECORDED)
    record["benchmarks"] = [row for row in record["benchmarks"] if len(row["stats"]["data"]) >= 10]
    both = copy.deepcopy(record), copy.deepcopy(record)
    for number, half in enumerate(both):
        for row in half["benchmarks"]:
            row["stats"]["data"] = row["stats"]["data"][number::2]
            peers = row["extra_info"]["peer_seconds"]
            for peer in peers:
                peers[peer] = peers[peer][number::2]
    return both


def slowed(record, name, times, *, peers=False):
    found = copy.deepcopy(record)
    for row in found["benchmarks"]:
        if row["name"] == name:
            row["stats"]["data"] = [times * s for s in row["stats"]["data"]]
            if peers:
                samples = row["extra_info"]["peer_seconds"]
                row["extra_info"]["peer_seconds"] = {
                    peer: [times * s for s in found] for peer, found in samples.items()
                }
    return found


def verdicts(a, b):
    return {change.name: change.verdict for change in compared(a, b, FLOOR).changes}


def test_halves_of_one_run_differ_by_noise_alone(halves):
    found = verdicts(*halves)
    assert len(found) >= 4
    assert set(found.values()) == {NOISE}


def test_an_injected_regression_is_told_and_nothing_else(halves):
    a, b = halves
    name = a["benchmarks"][0]["name"]
    for times, verdict in ((1.15, SLOWER), (1 / 1.15, FASTER)):
        found = verdicts(a, slowed(b, name, times))
        assert found.pop(name) == verdict
        assert set(found.values()) == {NOISE}


def test_what_slows_the_peers_as_much_is_the_machine(halves):
    a, b = halves
    name = a["benchmarks"][0]["name"]
    assert verdicts(a, slowed(b, name, 1.15, peers=True))[name] == NOISE


def test_a_change_below_the_floor_is_noise_however_sure():
    a, b = (one_case([times * s for s in (1.0, 1.001, 0.999) * 5]) for times in (1.0, 1.02))
    assert verdicts(a, b) == {"test_x": NOISE}
    assert [change.verdict for change in compared(a, b, 0.0).changes] == [SLOWER]


def one_case(data):
    row = {"name": "test_x", "group": "ops", "stats": {"data": data}, "extra_info": {}}
    return {"machine_info": {}, "commit_info": {}, "benchmarks": [row]}


def test_three_rounds_tell_a_large_change_and_not_a_small_one():
    a = one_case([1.00, 1.03, 1.01])
    assert verdicts(a, one_case([1.50, 1.52, 1.49])) == {"test_x": SLOWER}
    # All three lie beyond all three of A: that happens by chance in one of ten.
    assert verdicts(a, one_case([1.04, 1.09, 1.06])) == {"test_x": NOISE}


def test_other_machines_are_compared_by_their_peers(halves):
    a, b = halves
    b["machine_info"]["threads"] = 64
    b["machine_info"]["versions"]["torch"] = "2.16.0"
    b["commit_info"]["id"] = "f" * 40
    faster_machine = b
    for row in b["benchmarks"]:
        faster_machine = slowed(faster_machine, row["name"], 0.1, peers=True)
    name = a["benchmarks"][0]["name"]
    found = compared(a, slowed(faster_machine, name, 1.3), FLOOR)
    assert found.by_peers
    told = {change.name: change for change in found.changes}
    assert told.pop(name).verdict == SLOWER
    assert {change.verdict for change in told.values()} == {NOISE}
    words = "; ".join(found.notes)
    for part in ("threads: 2 and 64", "torch differs", "commits differ"):
        assert part in words


@pytest.mark.parametrize("name", ["attention", "batch-norm", "feeding", "losses", "models"])
def test_old_result_files_load(name):
    file = RESULTS / f"cpu-2-cores-{name}.json"
    found = compared(read(file), read(file), FLOOR)
    assert {change.verdict for change in found.changes} <= {NOISE}


def test_rows_of_memory_alone_have_no_speed_to_compare():
    record = read(RESULTS / "cpu-2-cores-losses-memory.json")
    with pytest.raises(UserError, match="a case in common"):
        compared(record, record, FLOOR)


def test_the_exit_code_tells_of_a_slower_case_where_that_is_asked_for(halves, tmp_path, capsys):
    a, b = halves
    name = a["benchmarks"][0]["name"]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, record in zip(files, (a, slowed(b, name, 1.2)), strict=True):
        file.write_text(json.dumps(record))
    words = ["bench", "compare", *map(str, files)]
    assert main(words) == 0
    assert "1 slower" in capsys.readouterr().out
    assert main([*words, "--fail-on-slower"]) == 1
    assert main([*words, "--fail-on-slower", "--floor", "30"]) == 0
    assert main(["bench", "compare", str(files[1]), str(files[0]), "--fail-on-slower"]) == 0


def test_another_file_is_one_sentence(tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text("[]")
    assert main(["bench", "compare", str(RECORDED), str(other)]) == 2
    assert "expected the JSON of a benchmark run" in capsys.readouterr().err
    empty = tmp_path / "empty.json"
    empty.write_text('{"benchmarks": []}')
    assert main(["bench", "compare", str(RECORDED), str(empty)]) == 2
    assert "a case in common" in capsys.readouterr().err
