"""How many images a second a CLIP training takes on GPUs: what runs published, and a ceiling.

Nothing here was measured by us: each figure says where it comes from. L tokens, W width.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from clipfast_bench.gpu_rows import GPUS

from clipfast.errors import UserError
from clipfast.models.config import ModelConfig, TextConfig, ViTConfig, plain_name
from clipfast.models.factory import read_config

PUBLISHED, ESTIMATE, GIVEN = "published", "estimate", "given"
# Of the peak that the data sheet names; a well tuned transformer of this size reaches that much.
UTILISATION = 0.4
_EPOCHS = 32
_WIT, _LAION = 400e6 * _EPOCHS, 407_332_084 * _EPOCHS  # samples seen
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


def _of_run(model: str, gpu: str, gpus: int, samples: float, hours: float, source: str) -> Rate:
    return Rate(model, gpu, samples / (hours * 3600 * gpus), PUBLISHED, source)


RUNS = (
    _of_run("ViT-L-14", "V100", 256, _WIT, 12 * 24, "arXiv 2103.00020: 256 V100, 12 days"),
    _of_run("ViT-L-14", "A100", 400, _LAION, 127, f"{_TABLE}: 400 A100, 127 hours"),
    _of_run("ViT-B-32", "A100", 128, _LAION, 36, f"{_TABLE}: 128 A100, 36 hours"),
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
        UserError: there is neither.
    """
    published = [rate for rate in RUNS if (rate.model, rate.gpu) == (model, gpu)]
    if gpu in GPUS:
        return (*published, ceiling(model, gpu))
    if not published:
        raise UserError(
            f"--target: expected one of {', '.join(GPUS)}, or a rate as in "
            f"{model}@8x{gpu}=500; got {gpu}"
        )
    return tuple(published)


def ceiling(model: str, gpu: str) -> Rate:
    """The rate at 40 % of the data sheet's bfloat16 peak, three forward passes' worth a step.

    Raises:
        UserError: there is no such model, or its arithmetic has no formula here.
    """
    peak, _ = GPUS[gpu]
    rate = UTILISATION * peak / (3 * forward_flops(model, read_config(model)))
    return Rate(model, gpu, rate, ESTIMATE, f"{UTILISATION:.0%} of the {gpu}'s bfloat16 peak")


def forward_flops(name: str, config: ModelConfig) -> float:
    """Floating-point operations of one image and one caption, padded, all tokens computed."""
    vision, text = config.vision, config.text
    if not isinstance(vision, ViTConfig) or not isinstance(text, TextConfig):
        raise UserError(
            f"--target {name}: expected a ViT with CLIP's text tower, or a rate as in "
            f"{name}@8xH100=500; got another model"
        )
    patches = (vision.image_size // vision.patch_size) ** 2
    embedding = 2 * patches * 3 * vision.patch_size**2 * vision.width
    image = _blocks(vision.layers, patches + 1, vision.width, vision.mlp_ratio)
    return embedding + image + _blocks(text.layers, text.context_length, text.width, text.mlp_ratio)


def _blocks(layers: int, length: int, width: int, mlp_ratio: float) -> float:
    products = 2 * length * (4 + 2 * mlp_ratio) * width**2
    attention = 4 * length**2 * width
    return layers * (products + attention)
