"""Answers: what counts as right."""

import json
import math

import numpy as np
import torch
from clipfast_bench.harness.answers import Answer, agreement, by_norm, equal, within_tolerance
from clipfast_bench.harness.operation import Question, Way, answers, leaves
from clipfast_bench.harness.operation import _Judged as Judged


def test_numpys_numbers_are_json_too():
    found = Answer(np.float64(0.5), np.float64(1)).as_json()
    assert json.loads(json.dumps(found)) == {"error": 0.5, "allowed": 1.0, "right": True, "of": ""}
    assert found["right"] is True


def test_an_error_up_to_what_is_allowed_is_right():
    assert Answer(1.0, 1.0).right
    assert not Answer(1.1, 1.0).right
    assert not Answer(math.nan, 1.0).right
    assert Answer(math.nan, 1.0).badness == math.inf


def question(seed=0):
    torch.manual_seed(seed)
    x = torch.randn(64, 32)
    return Question(
        inputs=leaves(x=x),
        ways=[],
        reference=lambda x: x.square() * torch.sigmoid(x),
        d_out=torch.randn(64, 32),
    )


def judged(function, name="peer"):
    asked = question()
    way = Way(name, lambda: function)
    return Judged(question, asked, asked, True).answer(way, function)


def test_the_same_in_another_order_is_right_and_a_zeroed_gradient_is_not():
    class Zeroed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.square() * torch.sigmoid(x)

        @staticmethod
        def backward(ctx, d_out):
            return torch.zeros_like(d_out)

    assert judged(lambda x: x * (x * torch.sigmoid(x))).right
    answer = judged(Zeroed.apply)
    assert not answer.right
    assert answer.of == "d_x"


def test_a_wrong_output_is_named():
    answer = judged(lambda x: 1.001 * x.square() * torch.sigmoid(x))
    assert not answer.right
    assert answer.error > answer.allowed


def test_a_large_case_is_compared_at_its_own_size_too():
    def ask(rows, seed):
        torch.manual_seed(seed)
        x = torch.randn(rows, 8)
        return Question(leaves(x=x), [], torch.sin, d_out=torch.ones(rows, 8))

    def wrong_beyond_100(x):
        return torch.sin(x) if len(x) <= 100 else 1.01 * torch.sin(x)

    way = Way("ours", lambda: wrong_beyond_100)
    both = Judged(lambda seed: ask(64, seed), ask(64, 0), ask(256, 0), True)
    assert not both.answer(way, wrong_beyond_100).right
    assert both.answer(way, torch.sin).right


def test_outputs_and_gradients_have_names():
    two = leaves(a=torch.ones(2), b=torch.ones(2))
    found = answers(lambda a, b: (a * b).sum(), two)
    assert set(found) == {"out", "d_a", "d_b"}


def test_tolerance_is_of_the_contenders_dtype():
    exact = {"out": torch.randn(100, dtype=torch.float64)}
    low = {"out": exact["out"].bfloat16()}
    assert within_tolerance(low, low, exact).right
    assert within_tolerance({"out": exact["out"].float() * 1.001}, low, exact).right
    assert not within_tolerance({"out": exact["out"].float() * 1.1}, low, exact).right


def test_other_comparisons_tell_right_from_wrong():
    a = torch.randn(1000)
    assert agreement({"out": a * (1 + 1e-6)}, {"out": a}).right
    assert not agreement({"out": a * (1 + 1e-3)}, {"out": a}).right
    assert by_norm({"out": a}, {"out": a.double()}, 1e-2).right
    assert not by_norm({"out": 1.1 * a}, {"out": a.double()}, 1e-2).right
    assert equal([1, 2], [1, 2], "ids").right
    assert equal([1, 2], [1, 3], "ids").error == 1
    assert not equal([1], [1, 3], "ids").right
    assert not equal(torch.ones(2), torch.ones(3), "ids").right


def test_a_16_bit_peer_may_round_as_peoples_do_and_ours_may_not():
    def ask(seed):
        torch.manual_seed(seed)
        x = torch.randn(64, 32).half()
        return Question(leaves(x=x), [], torch.sin, d_out=torch.ones(64, 32).half())

    def rounds_once_more(x):
        return (1.012 * torch.sin(x.float())).half()

    def off(x):
        return (1.05 * torch.sin(x.float())).half()

    judged = Judged(ask, ask(0), ask(0), True)
    for name, function, right in (
        ("peer", rounds_once_more, True),
        ("ours", rounds_once_more, False),
        ("peer", off, False),
    ):
        assert judged.answer(Way(name, torch.nn.Identity), function).right is right, (
            name,
            function,
        )
