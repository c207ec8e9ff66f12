"""Contests: who is wrong has no speed, and a budget is kept, by a clock of the test's own."""

import math

import pytest
import torch
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.budget import Allotment, Budget
from clipfast_bench.harness.contest import (
    FEWEST_ROUNDS,
    OURS,
    Contender,
    Contest,
    Entrant,
    LeftOut,
    Subject,
    Wrong,
)

RIGHT, OFF = Answer(1.0, 2.0), Answer(3.0, 2.0)


class Clock:
    """Shows what a run returns as its seconds; nothing else takes time."""

    def __init__(self):
        self.now = 0.0

    def read(self):
        return self.now

    def seconds(self, run):
        taken = run()
        self.now += taken
        return taken


class Sink:
    timing = True

    def __init__(self):
        self.extra_info, self.seconds = {}, None

    def record(self, seconds):
        self.seconds = list(seconds)


def contest(clock=None, seconds=None, target=math.inf, most=math.inf, **more):
    clock = clock or Clock()
    return Contest(
        sink=Sink(),
        clock=clock,
        device=torch.device("cpu"),
        budget=Budget(seconds, clock.read),
        allotment=Allotment(target, most),
        **more,
    )


def contender(name, seconds, answer=RIGHT, **more):
    return Contender(name, lambda: Entrant(lambda: seconds, lambda: answer), **more)


def hold(held, *contenders, rounds=10):
    return held.hold(Subject("op"), contenders, rounds=rounds)


def test_a_wrong_peer_has_an_error_and_no_speed():
    held = contest()
    hold(held, contender(OURS, 1.0), contender("right", 2.0), contender("wrong", 0.5, OFF))
    info = held.sink.extra_info
    assert set(info["peer_seconds"]) == set(info["peer_over_ours"]) == {"right"}
    assert info["peer_over_ours"]["right"] == 2.0
    assert info["answers"]["wrong"] == {"error": 3.0, "allowed": 2.0, "right": False, "of": ""}


def test_nobody_is_timed_where_ours_is_wrong():
    held = contest()
    with pytest.raises(Wrong, match=r"wrong: ours error 3.0e\+00, allowed 2.0e\+00"):
        hold(held, contender(OURS, 1.0, OFF), contender("right", 2.0))
    assert held.sink.seconds is None
    assert held.clock.now == 0


def test_not_a_number_is_wrong():
    held = contest()
    hold(held, contender(OURS, 1.0), contender("lost", 1.0, Answer(math.nan, 2.0)))
    assert held.sink.extra_info["answers"]["lost"]["right"] is False
    assert held.sink.extra_info["answers"]["lost"]["error"] is None


def test_a_peer_that_does_not_serve_or_fails_is_absent_with_its_reason():
    def breaks():
        raise RuntimeError("no kernel image\nand more")

    held = contest()
    away = Contender("away", breaks, lambda device: "it is not installed")
    hold(held, contender(OURS, 1.0), away, Contender("broken", breaks))
    absent = held.sink.extra_info["absent"]
    assert absent == {
        "away": "it is not installed",
        "broken": "failed: RuntimeError: no kernel image",
    }


def test_our_own_failure_is_not_hidden():
    def breaks():
        raise RuntimeError("no kernel image")

    with pytest.raises(RuntimeError, match="no kernel image"):
        hold(contest(), Contender(OURS, breaks))


def test_every_round_times_everybody_and_begins_with_another():
    order = []

    def of(name):
        def run():
            order.append(name)
            return 1.0

        return Contender(name, lambda: Entrant(run))

    samples = hold(contest(), of(OURS), of("a"), of("b"), rounds=3)
    assert {name: len(found) for name, found in samples.items()} == {OURS: 3, "a": 3, "b": 3}
    assert order[-9:] == [OURS, "a", "b", "a", "b", OURS, "b", OURS, "a"]


def test_rounds_fill_the_target_and_no_more():
    held = contest(seconds=100.0, target=10.0, most=40.0)
    samples = hold(held, contender(OURS, 0.1), contender("peer", 0.4), rounds=1000)
    # Two of everybody warm up: of ten seconds nine are left, for rounds of a half.
    assert len(samples[OURS]) == 18
    assert held.clock.now <= 10.0 + 1e-9


def test_a_case_has_its_fewest_rounds_while_it_may_stretch():
    held = contest(seconds=100.0, target=2.0, most=8.0)
    samples = hold(held, contender(OURS, 1.0), contender("peer", 0.5), rounds=50)
    assert len(samples[OURS]) == FEWEST_ROUNDS


def test_a_case_that_cannot_fit_is_left_out_with_the_time_that_it_needs():
    held = contest(seconds=100.0, target=2.0, most=8.0)
    with pytest.raises(LeftOut, match=r"needs about 40 s, and its part of the budget is 8.0 s"):
        hold(held, contender(OURS, 10.0))
    assert held.clock.now == 10.0


def test_a_case_is_not_begun_after_the_budget():
    with pytest.raises(LeftOut, match="the budget had ended before its turn"):
        contest(seconds=10.0, target=0.0, most=0.0)


def test_a_larger_case_is_not_begun_when_a_smaller_one_tells_that_it_cannot_fit():
    clock = Clock()
    budget = Budget(100.0, clock.read)
    parts = {
        "clock": clock,
        "device": torch.device("cpu"),
        "budget": budget,
        "kind": "loss",
    }
    small = Contest(sink=Sink(), allotment=Allotment(5.0, 20.0), work=1.0, **parts)
    hold(small, contender(OURS, 0.1))
    before = clock.now
    with pytest.raises(LeftOut, match="needs about 32 s"):
        Contest(sink=Sink(), allotment=Allotment(5.0, 20.0), work=64.0, **parts)
    assert clock.now == before
    Contest(sink=Sink(), allotment=Allotment(5.0, 20.0), work=4.0, **parts)


def test_compiled_peers_need_a_budget_for_compiling():
    compiled = contender("compiled", 1.0, compiled=True)
    small = contest(seconds=30.0, target=2.0, most=8.0)
    hold(small, contender(OURS, 0.1), compiled)
    assert "compiling takes some seconds" in small.sink.extra_info["absent"]["compiled"]
    for large in (contest(seconds=900.0, target=60.0, most=240.0), contest()):
        hold(large, contender(OURS, 0.1), compiled)
        assert "compiled" in large.sink.extra_info["peer_seconds"]


def test_ctrl_c_keeps_whole_rounds_if_there_are_enough():
    for rounds, kept in ((FEWEST_ROUNDS + 1, True), (FEWEST_ROUNDS - 1, False)):
        left = iter([1.0] * (1 + rounds))  # one warms up

        def run(left=left):
            for seconds in left:
                return seconds
            raise KeyboardInterrupt

        held = contest()
        with pytest.raises(KeyboardInterrupt):
            hold(held, Contender(OURS, lambda run=run: Entrant(run)), contender("peer", 2.0))
        if kept:
            assert held.sink.seconds == [1.0] * rounds
            assert len(held.sink.extra_info["peer_seconds"]["peer"]) == rounds
        else:
            assert held.sink.seconds is None


def test_seconds_are_of_a_unit_of_work():
    held = contest()
    half = Contender("half the work", lambda: Entrant(lambda: 3.0, lambda: RIGHT, 5.0))
    hold(held, Contender(OURS, lambda: Entrant(lambda: 3.0, lambda: RIGHT, 10.0)), half)
    assert held.sink.seconds[0] == pytest.approx(0.3)
    assert held.sink.extra_info["peer_over_ours"]["half the work"] == pytest.approx(2.0)


def test_measures_are_no_peers():
    held = contest()
    part = Contender("a part of ours", lambda: Entrant(lambda: 0.5), is_peer=False)
    samples = hold(held, contender(OURS, 1.0), part)
    assert len(samples["a part of ours"]) == 10
    assert held.sink.extra_info["peer_seconds"] == {}


def test_what_is_imported_for_later_cases_too_is_not_the_cases_time():
    clock = Clock()

    def imports():
        clock.now += 50.0
        held.end_if_overdue()
        return Entrant(lambda: 0.1, lambda: RIGHT)

    held = contest(clock, seconds=100.0, target=2.0, most=8.0)
    hold(held, contender(OURS, 0.1), Contender("peer", imports))
    assert "peer" in held.sink.extra_info["peer_seconds"]
    clock.now += 10.0
    with pytest.raises(LeftOut, match="it needs more than 1. s"):
        held.end_if_overdue()
