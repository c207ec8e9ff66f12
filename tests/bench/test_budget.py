"""Budgets: the time that is granted, and how it is shared out."""

import pytest
from clipfast_bench.harness.budget import Budget, parse_budget

from clipfast.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("2m", 120), ("1h", 3600), ("1.5m", 90), ("45", 45)]
)
def test_a_time_is_read(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-3s", "2 minutes", "m", "1d", "nan"])
def test_another_form_is_one_sentence(text):
    with pytest.raises(UserError, match="--budget: expected a time such as 30s, 2m or 1h"):
        parse_budget(text)


def test_shares_follow_weights_and_what_one_leaves_the_others_have():
    now = [0.0]
    budget = Budget(103.0, lambda: now[0])  # of which three are for the end
    assert budget.allot([4, 1, 1, 4]).target == pytest.approx(40)
    now[0] = 10.0  # the first took less
    assert budget.allot([1, 1, 4]).target == pytest.approx(15)
    now[0] = 90.0
    last = budget.allot([4])
    assert (last.target, last.most) == (10, 10)
    now[0] = 120.0
    assert budget.allot([4]).most == 0


def test_cases_that_keep_to_what_is_allotted_end_within_the_budget():
    now = [0.0]
    budget = Budget(60.0, lambda: now[0])
    weights = [4.0] * 10 + [1.0] * 40
    for done in range(len(weights)):
        now[0] += budget.allot(weights[done:]).most  # the worst that a case may do
    assert now[0] <= 60.0 + 1e-9


def test_without_an_end_everything_is_granted():
    budget = Budget(None)
    assert budget.allot([1.0]).most == float("inf")
    assert budget.grants("compiling", 1e9)


def test_compiling_and_memory_have_parts_of_their_own():
    budget = Budget(100.0, lambda: 0.0)
    assert budget.grants("compiling", 20.0)
    assert not budget.grants("compiling", 20.0)
    assert budget.grants("memory", 15.0)
    assert not budget.grants("memory", 1.0)


def test_a_round_of_a_larger_case_is_guessed_from_a_smaller_one():
    budget = Budget(100.0, lambda: 0.0)
    assert budget.guess("loss", 16.0) == 0
    budget.learn("loss", 4.0, 0.5)
    assert budget.guess("loss", 16.0) == 2.0
    assert budget.guess("attention", 16.0) == 0


def test_the_first_case_of_every_operation_has_a_grace_and_no_more():
    now = [0.0]
    budget = Budget(100.0, lambda: now[0])
    assert budget.allot([1.0, 99.0], must=True).most == pytest.approx(20)
    assert budget.allot([1.0, 99.0], most=0.4, must=True).most == pytest.approx(0.4 * 112)
    now[0] = 107.0
    assert budget.allot([1.0], must=True).most == pytest.approx(5)
    assert budget.allot([1.0]).most == 0
    now[0] = 120.0
    assert budget.allot([1.0], must=True).most == 0
