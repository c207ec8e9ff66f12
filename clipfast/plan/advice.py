"""What would serve better than what was asked for, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clipfast.plan.estimate import STAGES, Outcome, Plan, memory_of, outcome_of
from clipfast.plan.memory import GIB, usable
from clipfast.plan.request import Choice, Request

_WORTH = 0.03  # a shorter step than this share is not advised
_MOST_GPUS = 1 << 20


def advice_of(plan: Plan) -> list[str]:
    """Beginning with why the plan cannot hold, where it cannot."""
    return [*_on_memory(plan), *_on_feeding(plan), *_on_exchange(plan), *_on_utilisation(plan)]


def choices_of(request: Request) -> Iterator[Choice]:
    """Every stage, with checkpointing and without, in as many micro-batches as there may be. The
    plain trainer first, and fewer of everything first."""
    pairs = request.step_pairs
    for micro_batches in (n for n in range(1, pairs + 1) if pairs % n == 0 and not n & (n - 1)):
        for checkpointing in (False, True):
            for stage in STAGES:
                yield Choice(stage, checkpointing, micro_batches)


def best_of(plan: Plan) -> Outcome | None:
    """The way with the shortest step of those that fit; None if none does."""
    request, best = plan.request, None
    for choice in choices_of(request):
        found = outcome_of(request, choice, plan.utilisation.middle, plan.feed.limit)
        if found.fits and (best is None or found.step.total < best.step.total * (1 - _WORTH)):
            best = found
    return best


def _on_memory(plan: Plan) -> Iterator[str]:
    outcome, best = plan.outcome, best_of(plan)
    if outcome.fits:
        if best is not None and best.step.total < outcome.step.total * (1 - _WORTH):
            gain = outcome.step.total / best.step.total
            yield f"{_named(best)} fits too, and a step is {gain:.2f} times as fast"
        return
    memory, limit = outcome.memory.total / GIB, outcome.usable / GIB
    problem = f"does not fit: {memory:,.1f} GiB of {limit:,.1f} usable"
    if best is not None:
        yield f"{problem}; of what fits, {_named(best)} is the fastest"
        return
    gpus = _enough_gpus(plan)
    if gpus is not None:
        yield f"{problem}, in no way on {plan.request.gpus:,} GPUs; {gpus:,} would do"
    else:
        yield (
            f"{problem}, in no way on any number of {plan.request.gpu.name} that can share the "
            "batch"
        )


def _named(outcome: Outcome) -> str:
    flags = outcome.choice.flags
    return flags or "the trainer as it is, without --zero-stage or --grad-checkpointing,"


def _enough_gpus(plan: Plan) -> int | None:
    """The fewest, by doubling, on which the batch fits in some way."""
    request = plan.request
    gpus = request.gpus * 2
    while request.batch % gpus == 0 and gpus <= _MOST_GPUS:
        more = replace(request, gpus=gpus)
        limit = usable(request.gpu)
        for choice in choices_of(more):
            pairs = more.step_pairs // choice.micro_batches
            if memory_of(more, choice, pairs).total <= limit:
                return gpus
        gpus *= 2
    return None


def _on_feeding(plan: Plan) -> Iterator[str]:
    feed = plan.feed
    if plan.outcome.step.waiting <= 0:
        return
    yield (
        f"GPUs wait for images: {feed.cores:,.0f} cores would keep up, and their machines have "
        f"{feed.available_cores:,.0f}: shrink the images once (`clipfast shards resize`), or "
        "decode on GPUs (--decoder dali)"
    )


def _on_exchange(plan: Plan) -> Iterator[str]:
    step = plan.outcome.step
    if step.exposed > 0.2 * step.compute and plan.outcome.choice.zero_stage:
        yield (
            f"{step.exposed / step.total:.0%} of a step waits for the network, as DeepSpeed's "
            "exchange is not behind the backward: a lower stage exchanges less"
        )
    elif step.exposed > 0.2 * step.compute:
        yield (
            f"{step.exposed / step.total:.0%} of a step waits for the network: a larger batch, "
            "fewer GPUs, or a faster network"
        )


def _on_utilisation(plan: Plan) -> Iterator[str]:
    if plan.utilisation.low < plan.utilisation.high and plan.request.calibration is None:
        yield (
            "the widest uncertainty is how much of its peak a GPU reaches: measure a step on one "
            "(`clipfast bench --json FILE`), and plan with --calibration FILE"
        )
