"""Each fault is listed once, across runs too, and too many of them are an end."""

import json

import pytest

from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.samples import Fault, Place
from clipfast.errors import UserError


def fault(number, reason="undecodable"):
    return Fault(Place("a.tar", number, f"{number:04d}"), reason)


def listed(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_fault_is_listed_with_its_place_once(tmp_path):
    told = []
    quarantine = Quarantine(tmp_path / "q.jsonl", 1.0, told.append)
    for number in (1, 2, 1):
        quarantine.replace(fault(number))
    assert listed(tmp_path / "q.jsonl") == [
        {"shard": "a.tar", "offset": n, "key": f"{n:04d}", "reason": "undecodable"} for n in (1, 2)
    ]
    assert told == [fault(1), fault(2)]
    assert quarantine.replaced == 2


def test_a_resumed_run_lists_only_what_is_new_even_after_a_line_that_a_crash_cut(tmp_path):
    file = tmp_path / "q.jsonl"
    Quarantine(file, 1.0, lambda fault: None).replace(fault(1))
    with open(file, "a") as half:
        half.write('{"shard": "a.t')
    again = Quarantine(file, 1.0, lambda fault: None)
    again.replace(fault(1))
    again.replace(fault(2))
    lines = file.read_text().splitlines()
    assert [json.loads(lines[i])["offset"] for i in (0, -1)] == [1, 2]
    assert len(lines) == 3
    assert again.replaced == 2


def test_the_limit_is_a_share_of_what_was_tried(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.01, lambda fault: None)
    quarantine.tried(5000)
    for number in range(50):
        quarantine.replace(fault(number))
    with pytest.raises(UserError, match=r"at most 1.00% unusable .*; got 51 among 5,000, the last"):
        quarantine.replace(fault(50, "empty image"))


def test_what_opening_finds_is_listed_and_counts_for_no_limit(tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.0, lambda fault: None)
    quarantine.found(fault(1, "no caption"))
    assert len(listed(tmp_path / "q.jsonl")) == 1
    assert quarantine.replaced == 0


def test_without_a_fault_there_is_no_file(tmp_path):
    Quarantine(tmp_path / "q.jsonl", 0.01, lambda fault: None).tried(10)
    assert not list(tmp_path.iterdir())
