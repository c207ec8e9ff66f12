"""From a request to its plan: memory, time, feed, what bounds it, and what would serve better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from clipfast_kernels.ops.contrastive.cost import contrastive_flops

from clipfast.plan import memory as parts
from clipfast.plan.communication import (
    Collective,
    Exchange,
    bus,
    open_clip_features,
    step_exchanges,
    timed,
)
from clipfast.plan.counting import feature_bytes
from clipfast.plan.feeding import DECODE_RATE, DECODE_SOURCE, IMAGE_KB, IMAGE_SOURCE, Feed
from clipfast.plan.memory import Memory
from clipfast.plan.published import CONFIDENCE, GROUPS, Range, expected
from clipfast.plan.request import Choice, Request

STAGES = (None, 0, 1, 2, 3)
_DAY = 86_400


class Said(NamedTuple):
    """A number, and where it comes from."""

    value: float
    source: str


class Step(NamedTuple):
    """Seconds of one step.

    Attributes:
        compute: of towers and loss.
        exposed: of the exchange, what compute does not hide.
        waiting: for images, beyond both.
        exchange: of all.
    """

    compute: float
    exposed: float
    waiting: float
    exchange: Exchange

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.waiting


class Reach(NamedTuple):
    """Steps at the middle utilisation, and at its ends."""

    middle: Step
    fast: Step
    slow: Step


@dataclass(frozen=True)
class Outcome:
    """Of one way to compute the step.

    Attributes:
        largest: the most pairs of a GPU's micro-batch that fit.
        step: at the middle utilisation.
    """

    choice: Choice
    memory: Memory
    usable: float
    largest: int
    step: Step

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.usable


@dataclass(frozen=True)
class Plan:
    """Attributes:
    outcome: of what was asked for.
    others: each stage with checkpointing and without, as many micro-batches.
    utilisation: of the GPU's peak.
    dense_loss: bytes, with open_clip's `--local-loss` and without.
    slow, fast: steps at the utilisation's ends.
    open_clip_step: the same computed open_clip's way.
    """

    request: Request
    outcome: Outcome
    others: list[Outcome]
    utilisation: Range
    utilisation_source: str
    decode: Said
    image_kb: Said
    collectives: list[Collective]
    bus_bytes: float
    dense_loss: tuple[float, float]
    slow: Step
    fast: Step
    open_clip_steps: Reach
    feed: Feed

    @property
    def steps(self) -> int:
        return math.ceil(self.request.samples / self.request.batch)

    def days(self, step: Step) -> float:
        return self.steps * step.total / _DAY

    @property
    def bound_by(self) -> str:
        """compute, communication, feeding or memory: what would have to give for it to end sooner,
        or to begin."""
        step = self.outcome.step
        if not self.outcome.fits:
            return "memory"
        if step.waiting > 0:
            return "feeding"
        return "communication" if step.exposed > step.compute else "compute"


def make_plan(request: Request) -> Plan:
    utilisation, source = _utilisation(request)
    decode = _said(request, "decode_rate", "--decode-rate", DECODE_RATE, DECODE_SOURCE)
    image_kb = _said(request, "image_kb", "--image-kb", IMAGE_KB, IMAGE_SOURCE)
    feed = _feed(request, decode.value, image_kb.value, 0)
    asked = outcome_of(request, request.choice, utilisation.middle, feed.limit)
    others = [
        outcome_of(
            request,
            replace(request.choice, zero_stage=stage, checkpointing=checkpointing),
            utilisation.middle,
            feed.limit,
        )
        for checkpointing in (False, True)
        for stage in STAGES
    ]
    choice, pairs, rows = request.choice, request.batch, request.step_pairs
    slow, fast = (
        step_of(request, choice, share, feed.limit) for share in (utilisation.low, utilisation.high)
    )
    wanted = request.batch / (asked.step.compute + asked.step.exposed)
    return Plan(
        request=request,
        outcome=asked,
        others=others,
        utilisation=utilisation,
        utilisation_source=source,
        decode=decode,
        image_kb=image_kb,
        collectives=exchanges_of(request, choice),
        bus_bytes=bus(request.gpu, request.gpus, request.network_bytes),
        dense_loss=(
            parts.dense_loss(rows, pairs, request.model.features, ranks=request.gpus),
            parts.dense_loss(pairs, pairs, request.model.features, ranks=request.gpus),
        ),
        slow=slow,
        fast=fast,
        open_clip_steps=Reach(
            *(
                step_of(request, choice, share, feed.limit, as_open_clip=True)
                for share in (utilisation.middle, utilisation.high, utilisation.low)
            )
        ),
        feed=_feed(request, decode.value, image_kb.value, wanted),
    )


def outcome_of(request: Request, choice: Choice, utilisation: float, feed_limit: float) -> Outcome:
    """Args:
    utilisation: of the peak.
    feed_limit: images/s that come.
    """
    return Outcome(
        choice,
        memory_of(request, choice, request.step_pairs // choice.micro_batches),
        parts.usable(request.gpu),
        largest_of(request, choice),
        step_of(request, choice, utilisation, feed_limit),
    )


def memory_of(request: Request, choice: Choice, micro_pairs: int) -> Memory:
    """Args: micro_pairs: b, of one GPU's micro-batch."""
    model, stage, gpus = request.model, choice.zero_stage, request.gpus
    rows = micro_pairs * choice.micro_batches
    saved = model.saved(request.precision, stage)
    state = parts.state(model.tensors(request.precision), request.precision, stage, gpus)
    return Memory(
        *state,
        parts.activations(saved, micro_pairs, checkpointing=choice.checkpointing),
        parts.loss(
            rows,
            rows * gpus,
            model.features,
            ranks=gpus,
            size=feature_bytes(request.precision),
        ),
        parts.working(saved, micro_pairs, rows, model.image_size),
    )


def largest_of(request: Request, choice: Choice) -> int:
    """The most pairs of a micro-batch that fit, 0 if not one does."""
    limit = parts.usable(request.gpu)

    def fits(pairs: int) -> bool:
        return memory_of(request, choice, pairs).total <= limit

    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def exchanges_of(request: Request, choice: Choice) -> list[Collective]:
    return step_exchanges(
        request.model.tensors(request.precision),
        request.precision,
        choice.zero_stage,
        ranks=request.gpus,
        pairs=request.batch,
        features=request.model.features,
        sigmoid=request.sigmoid,
        micro_batches=choice.micro_batches,
    )


def step_of(
    request: Request,
    choice: Choice,
    utilisation: float,
    feed_limit: float,
    *,
    as_open_clip: bool = False,
) -> Step:
    """Compute takes FLOPs / (utilisation · peak); gradients of the plain engine travel behind the
    last micro-batch's backward, the rest is waited for; a step takes no less than its images do.

    Args:
        as_open_clip: padded captions, every token, features exchanged with gradients.
    """
    model, micro_batches = request.model, choice.micro_batches
    flops = model.open_clip_flops if as_open_clip else model.flops
    again = flops.blocks if choice.checkpointing else 0.0
    speed = utilisation * request.peak
    # GradCache: all micro-batches but the last go forward twice.
    twice = flops.forward * (micro_batches - 1) / micro_batches
    rows = request.step_pairs
    towers = rows * (flops.step + again + twice) / speed
    of_loss = contrastive_flops(
        request.batch, model.features, rows=rows if request.gpus > 1 else None
    )
    size = feature_bytes(request.precision)
    compute = towers + of_loss / (utilisation * request.gpu.peak(size))
    collectives = exchanges_of(request, choice)
    if as_open_clip and collectives:
        gathered = open_clip_features(request.batch, model.features, request.precision)
        collectives = [*collectives[:-1], Collective("features", "all-gather", gathered)]
    backward = rows / micro_batches * (flops.backward + again) / speed
    exchange = timed(
        collectives,
        request.gpus,
        bus(request.gpu, request.gpus, request.network_bytes),
        backward,
    )
    waiting = max(0.0, request.batch / feed_limit - compute - exchange.exposed)
    return Step(compute, exchange.exposed, waiting, exchange)


def _utilisation(request: Request) -> tuple[Range, str]:
    if request.utilisation is not None:
        return Range(*[request.utilisation] * 3), "--utilisation"
    if request.calibration is not None:
        found, source = request.calibration.utilisation
        if isinstance(found, Range):
            return found, source
    runs = sum(len(group.runs) for group in GROUPS)
    return expected(request.model.open_clip_flops.forward), (
        f"published: {runs} trainings in {len(GROUPS)} groups, larger models reaching more, and "
        f"the range in which {CONFIDENCE:.0%} of others should lie"
    )


def _said(request: Request, name: str, flag: str, default: float, source: str) -> Said:
    given = getattr(request, name)
    if given is not None:
        return Said(given, flag)
    if request.calibration is not None:
        measured = getattr(request.calibration, name)
        if measured.value is not None:
            return Said(measured.value, measured.source)
    return Said(default, source)


def _feed(request: Request, decode_rate: float, image_kb: float, rate: float) -> Feed:
    return Feed(
        rate,
        decode_rate,
        rate / decode_rate,
        request.cores,
        rate * image_kb * 1e3,
        request.samples / request.epochs * image_kb * 1e3,
    )
