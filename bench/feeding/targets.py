"""Trainings that are to be fed: how many images a second each of their GPUs takes.

Nothing here was measured by us: each figure says where it comes from.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clipfast.errors import UserError
from clipfast.models.config import plain_name
from clipfast.plan.counting import open_clip_flops
from clipfast.plan.hardware import GPUS
from clipfast.plan.published import (
    OPEN_CLIP_B16,
    OPEN_CLIP_B32,
    OPEN_CLIP_L14,
    PAPER,
    PAPER_SOURCE,
    PASSES,
    Run,
)
from clipfast.plan.towers import PlannedModel

PUBLISHED, ESTIMATE, GIVEN = "published", "estimate", "given"
# Of the peak that the data sheet names: more than published CLIP trainings reach, as data has to
# keep up with the fastest.
CEILING = 0.4
_TABLE = "open_clip's docs/PRETRAINED.md"


class Rate(NamedTuple):
    """Attributes:
    model, gpu: by name; the GPU is empty where none was named.
    images_per_second: of one GPU.
    kind: PUBLISHED, ESTIMATE or GIVEN.
    source: where it comes from.
    """

    model: str
    gpu: str
    images_per_second: float
    kind: str
    source: str


class GpuDecoding(NamedTuple):
    """JPEG decoding on the GPU that trains, or on one beside it."""

    gpu: str
    images_per_second: float
    cpu_threads: int
    source: str


def _published(run: Run, source: str) -> Rate:
    return Rate(run.model, run.gpu, run.per_gpu, PUBLISHED, source)


_RUNS = (
    _published(PAPER, PAPER_SOURCE),
    _published(OPEN_CLIP_L14, f"{_TABLE}: 400 A100, 127 hours"),
    _published(OPEN_CLIP_B16, f"{_TABLE}: 176 A100, 61 hours"),
    _published(OPEN_CLIP_B32, f"{_TABLE}: 128 A100, 36 hours"),
)
GPU_DECODING = GpuDecoding(
    "H100",
    19e3,
    70,
    "DALI qa/TL1_decoder_perf: what NVIDIA's test asks of a ResNet-50 pipeline, of its own images",
)


class Target(NamedTuple):
    """A training that is to be fed.

    Attributes:
        rates: what one GPU may take, by different sources.
    """

    model: str
    gpu: str
    gpus: int
    rates: tuple[Rate, ...]

    @property
    def name(self) -> str:
        return f"{self.model} on {self.gpus} × {self.gpu}"


_FORM = re.compile(r"(?P<model>.+)@(?P<gpus>\d+)x(?P<gpu>[A-Za-z][\w-]*)(=(?P<rate>[\d.e+]+))?")


def parse_target(text: str) -> Target:
    """``MODEL@NxGPU``, or ``MODEL@NxGPU=RATE`` with the images/s of one GPU.

    Raises:
        UserError: another form, or a model or GPU without a known rate.
    """
    found = _FORM.fullmatch(text)
    if found is None or int(found["gpus"]) < 1:
        raise UserError(
            f"--target: expected MODEL@NxGPU, such as ViT-B-32@256xH100, or MODEL@NxGPU=IMAGES, "
            f"those of one GPU per second; got {text!r}"
        )
    model, gpu, gpus = plain_name(found["model"]), found["gpu"], int(found["gpus"])
    if found["rate"]:
        rate = _positive(found["rate"], text)
        return Target(model, gpu, gpus, (Rate(model, gpu, rate, GIVEN, "--target"),))
    return Target(model, gpu, gpus, rates_of(model, gpu))


def _positive(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"--target {text}: expected a positive rate; got {number!r}")
    return value


def rates_of(model: str, gpu: str) -> tuple[Rate, ...]:
    """Published rates of the model on such GPUs, then the ceiling.

    Raises:
        UserError: there is no such model or GPU.
    """
    if gpu not in GPUS:
        raise UserError(
            f"--target: expected one of {', '.join(GPUS)}, or a rate as in "
            f"{model}@8x{gpu}=500; got {gpu}"
        )
    published = [rate for rate in _RUNS if (rate.model, rate.gpu) == (model, gpu)]
    return (*published, ceiling(model, gpu))


def ceiling(model: str, gpu: str) -> Rate:
    """The rate at 40 % of the data sheet's 16-bit peak, three forward passes' worth a step, every
    token of 77 computed.

    Raises:
        UserError: there is no such model, or its arithmetic cannot be counted.
    """
    step = PASSES * open_clip_flops(PlannedModel(model)).forward
    rate = CEILING * GPUS[gpu].tensor_flops / step
    return Rate(model, gpu, rate, ESTIMATE, f"{CEILING:.0%} of the {gpu}'s 16-bit peak")
