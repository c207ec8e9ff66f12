"""An op's case: one function of tensors, forward and backward, by several libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, agreement, within_tolerance
from clipfast_bench.harness.contest import OURS, Contender, Contest, Entrant, Samples, Subject
from clipfast_bench.harness.memory import peak_mib
from torch import Tensor

Function = Callable[..., Tensor | tuple[Tensor, ...]]
Answers = dict[str, Tensor]
Judge = Callable[[Answers, Answers, Answers], Answer]

_NEAR_MISS = 4.0  # times what is allowed: asked again on other data, as `verify` does
_OTHER_SEEDS = (1, 2)
# What people's 16-bit losses are off by, of the largest value: they round where ours does not.
_PEERS_16_BIT = 2e-2
_UNIT = "one product"


class Way(NamedTuple):
    """One library's.

    Attributes:
        name: "ours", or the peer's.
        make: gives the function of the case's inputs.
        serves, compiled, heavy: as in `Contender`.
        lacks: gradients that it does not give.
    """

    name: str
    make: Callable[[], Function]
    serves: peers.Serves = peers.torch_eager
    compiled: bool = False
    heavy: bool = False
    lacks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Question:
    """Attributes:
    inputs: by name; gradients are of those that require them.
    ways: to the answer, ours first.
    reference: the formula, in any dtype.
    d_out: the output's gradient; None where it is a scalar.
    flops, nbytes: the least that forward and backward take.
    product: two matrices (n, D) and (N, D); their product a · bᵀ is the unit u that the case's
        time is told in.
    judge: whether an answer is right, from it, the reference's in its dtype and in float64.
    """

    inputs: Mapping[str, Tensor]
    ways: Sequence[Way]
    reference: Function
    d_out: Tensor | None = None
    flops: float | None = None
    nbytes: float | None = None
    product: tuple[Tensor, Tensor] | None = None
    judge: Judge = within_tolerance

    @cached_property
    def low(self) -> Answers:
        return answers(self.reference, self.inputs, self.d_out)

    @cached_property
    def exact(self) -> Answers:
        wide = {name: _wide(x) for name, x in self.inputs.items()}
        return answers(self.reference, wide, None if self.d_out is None else _wide(self.d_out))

    def run(self, function: Function) -> Callable[[], Answers]:
        return partial(answers, function, self.inputs, self.d_out)


Ask = Callable[[int, int], Question]


def answers(
    function: Function, inputs: Mapping[str, Tensor], d_out: Tensor | None = None
) -> Answers:
    """The outputs, and the gradients as d_<name>."""
    out = function(*inputs.values())
    outs = out if isinstance(out, tuple) else (out,)
    found = {f"out_{i}" if len(outs) > 1 else "out": x.detach() for i, x in enumerate(outs)}
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    if leaves:
        gradients = torch.autograd.grad(outs[0], list(leaves.values()), d_out, allow_unused=True)
        found |= {
            f"d_{name}": g for name, g in zip(leaves, gradients, strict=True) if g is not None
        }
    return found


def _wide(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def hold_question(
    contest: Contest,
    op: str,
    ask: Ask,
    size: int,
    *,
    rounds: int,
    checked_at: int | None = None,
    axis: str | None = None,
    dtype: str = "float32",
    unchecked_beyond: int | None = None,
    memory_of: Sequence[str] = (),
    memory_run: Callable[..., Callable[[], object]] | None = None,
    memory_arguments: tuple[str | int, ...] = (),
) -> Samples:
    """Asks small and times large.

    Args:
        op: the public function's name.
        ask: ask(size, seed) makes the question.
        size: of the one that is timed.
        checked_at: the largest size of which a float64 answer is worth its time; larger ones are
            compared with the reference in the case's dtype besides. None: there is no larger one.
        axis: the size's name, where results are points of a curve.
        unchecked_beyond: sizes at which the dense reference does not fit into memory.
        memory_of: contenders whose memory is measured, each in a process of its own, by
            memory_run(*memory_arguments, name).
    """
    full = ask(size, 0)
    small_size = size if checked_at is None else min(size, checked_at)
    small = full if small_size == size else ask(small_size, 0)
    others = partial(ask, small_size)
    judged = _Judged(others, small, full, unchecked_beyond is None or size <= unchecked_beyond)
    contenders = [_contender(way, judged, full, contest.device) for way in full.ways]
    if full.product is not None:
        contenders.append(_unit(*full.product))
    measured = {name: partial(peak_mib, memory_run, *memory_arguments, name) for name in memory_of}
    return contest.hold(
        Subject(op, (axis, size) if axis else None, dtype, full.flops, full.nbytes),
        contenders,
        rounds=rounds,
        memory_mib=measured,
        figures=partial(_in_units, full) if full.product is not None else None,
    )


class _Judged:
    """Answers to a question, the exact one asked at a size where that is affordable."""

    def __init__(
        self, others: Callable[[int], Question], small: Question, full: Question, whole: bool
    ) -> None:
        self.others, self.small, self.full, self.whole = others, small, full, whole

    def answer(self, way: Way, function: Function) -> Answer:
        found = []
        # Of a compiled function another size is compiled anew.
        if self.small is self.full or not (way.compiled and self.whole):
            found.append(self._exactly(way, function))
        if self.small is not self.full and self.whole:
            actual = self._given(way, self.full.run(function)())
            found.append(agreement(actual, self.full.low))
        return max(found, key=lambda answer: answer.badness)

    def _exactly(self, way: Way, function: Function) -> Answer:
        answer = self._compared(way, function, self.small)
        if answer.right or answer.badness > _NEAR_MISS:
            return answer
        again = (self.others(seed) for seed in _OTHER_SEEDS)
        return max(
            (self._compared(way, function, other) for other in again), key=lambda a: a.badness
        )

    def _compared(self, way: Way, function: Function, question: Question) -> Answer:
        actual = self._given(way, question.run(function)())
        answer = question.judge(actual, question.low, question.exact)
        worst = question.exact.get(answer.of)
        if way.name == OURS or answer.right or worst is None or not _is_16_bit(question):
            return answer
        share = _PEERS_16_BIT * worst.abs().max().item()
        return answer._replace(allowed=max(answer.allowed, share))

    @staticmethod
    def _given(way: Way, actual: Answers) -> Answers:
        return {name: x for name, x in actual.items() if name not in way.lacks}


def run_alone(ask: Ask, size: int, name: str) -> Callable[[], Answers]:
    """Of a contender by name, warmed up at a small size: for a process of its own."""
    question = ask(size, 0)
    function = next(way for way in question.ways if way.name == name).make()
    ask(64, 0).run(function)()
    return question.run(function)


def _is_16_bit(question: Question) -> bool:
    return any(x.dtype in (torch.bfloat16, torch.float16) for x in question.inputs.values())


def _contender(way: Way, judged: _Judged, full: Question, device: torch.device) -> Contender:
    def make() -> Entrant:
        function = way.make()
        return Entrant(full.run(function), lambda: judged.answer(way, function))

    return Contender(way.name, make, way.serves, way.compiled, way.heavy)


def _unit(a: Tensor, b: Tensor) -> Contender:
    a, b = a.detach(), b.detach()
    out = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
    entrant = Entrant(lambda: torch.mm(a, b.T, out=out))
    return Contender(_UNIT, lambda: entrant, is_peer=False)


def _in_units(question: Question, samples: Samples) -> dict[str, float]:
    assert question.product is not None
    a, b = question.product
    ratios = sorted(o / u for o, u in zip(samples[OURS], samples[_UNIT], strict=True))
    found = {"time in u": ratios[len(ratios) // 2]}
    if question.flops is not None:
        found["floor in u"] = question.flops / (2 * len(a) * len(b) * a.shape[1])
    return found


def compiled(
    make: Callable[[], Function], *, dynamic: bool | None = False
) -> Callable[[], Function]:
    """The same function under torch.compile."""
    return lambda: torch.compile(make(), dynamic=dynamic)


def leaves(**tensors: Tensor) -> dict[str, Tensor]:
    """Inputs whose gradients are asked for."""
    return {name: x.detach().requires_grad_() for name, x in tensors.items()}
