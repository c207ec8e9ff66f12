"""How fast CLIP trainings ran on GPUs, as their authors published it, and what that says of others.

Nothing here was measured by us: each figure says where it comes from.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from clipfast.plan.hardware import GPUS

# Of 100 runs like these, as many should be inside the range that `expected` gives.
CONFIDENCE = 0.9

_EPOCHS = 32
_WIT, _LAION = 400e6 * _EPOCHS, 407_332_084 * _EPOCHS  # samples seen

# Forward of one image and one caption of 77 tokens, every token computed, a multiply-add being two:
# open_clip's docs/model_profile.csv.
FORWARD_FLOPS = {
    "ViT-B-32": 14.78e9,
    "ViT-B-16": 41.09e9,
    "ViT-L-14": 175.33e9,
    "ViT-H-14": 381.68e9,
    "ViT-g-14": 581.15e9,
    "RN50x64": 552.65e9,
}
PASSES = 3  # a backward is twice a forward


class Run(NamedTuple):
    """One training.

    Attributes:
        model, gpu: by name.
        gpus: how many.
        images_per_second: of all of them.
        recomputed: blocks were computed again in the backward, as far as it is said.
    """

    model: str
    gpu: str
    gpus: int
    images_per_second: float
    recomputed: bool = False

    @property
    def per_gpu(self) -> float:
        return self.images_per_second / self.gpus

    @property
    def utilisation(self) -> float:
        """Of the data sheet's peak, of three forwards' arithmetic with every token computed, or
        four if blocks were recomputed, from start to end: what communication and feeding took is
        in it."""
        passes = PASSES + self.recomputed
        work = passes * FORWARD_FLOPS[self.model] * self.per_gpu
        return work / GPUS[self.gpu].tensor_flops


class Group(NamedTuple):
    """Trainings of one model by the same people: what they reach says one thing, not several.

    Attributes:
        source: where their figures stand.
    """

    source: str
    runs: tuple[Run, ...]

    @property
    def utilisation(self) -> float:
        """Their geometric mean."""
        return statistics.geometric_mean(run.utilisation for run in self.runs)


def lasting(
    model: str, gpu: str, gpus: int, samples: float, hours: float, *, recomputed: bool = False
) -> Run:
    """A training of which its length is known."""
    return Run(model, gpu, gpus, samples / (hours * 3600), recomputed)


def _laion(model: str, *runs: tuple[int, float], recomputed: bool = False) -> Group:
    """A group of LAION's table, of (GPUs, images/s of all). Of L/14 open_clip's docs/PRETRAINED.md
    says that blocks were recomputed."""
    return Group(
        "LAION-AI/scaling-laws-openclip, trained_models_info.csv (arXiv 2212.07143)",
        tuple(Run(model, "A100", gpus, rate, recomputed) for gpus, rate in runs),
    )


# Of the paper, §2.5: gradient checkpointing.
PAPER = lasting("ViT-L-14", "V100", 256, _WIT, 12 * 24, recomputed=True)
PAPER_SOURCE = "arXiv 2103.00020: 256 V100, 12 days"
_PAPER_RN = lasting("RN50x64", "V100", 592, _WIT, 18 * 24, recomputed=True)
# Of open_clip's docs/PRETRAINED.md.
OPEN_CLIP_L14 = lasting("ViT-L-14", "A100", 400, _LAION, 127, recomputed=True)
OPEN_CLIP_B16 = lasting("ViT-B-16", "A100", 176, _LAION, 61)
OPEN_CLIP_B32 = lasting("ViT-B-32", "A100", 128, _LAION, 36)

_NEMO = "NVIDIA NeMo user guide, CLIP performance: g/14 on 16 machines"
GROUPS = (
    Group(PAPER_SOURCE, (PAPER,)),
    Group("arXiv 2103.00020: 592 V100, 18 days", (_PAPER_RN,)),
    _laion(
        "ViT-B-32",
        (128, 52_724),
        (128, 93_294),
        (128, 108_845),
        (344, 218_174),
        (344, 219_759),
        (824, 187_872),
        (344, 99_289),
    ),
    _laion(
        "ViT-B-16",
        (344, 134_240),
        (344, 136_371),
        (176, 54_581),
        (176, 50_928),
        (344, 128_758),
        (344, 78_356),
        (176, 64_314),
        (176, 59_356),
        (344, 136_147),
    ),
    _laion(
        "ViT-L-14",
        (768, 60_328),
        (1024, 79_116),
        (1024, 67_928),
        (396, 40_027),
        (396, 39_913),
        (200, 35_525),
        (396, 38_879),
        (384, 27_862),
        (400, 41_970),
        recomputed=True,
    ),
    _laion("ViT-H-14", (824, 34_608)),
    _laion("ViT-g-14", (800, 24_800)),
    Group(f"{_NEMO} of A100", (Run("ViT-g-14", "A100", 128, 8_633),)),
    Group(f"{_NEMO} of H100", (Run("ViT-g-14", "H100", 128, 13_829),)),
)


class Range(NamedTuple):
    """Attributes:
    middle: what half of all cases should exceed.
    low, high: between which `CONFIDENCE` of them should lie.
    """

    middle: float
    low: float
    high: float


def expected(forward_flops: float, groups: Sequence[Group] = GROUPS) -> Range:
    """What share of its GPUs' peak one more training would reach, if it were like these.

    Larger models reach more: ln u = a + c·ln f + noise by least squares over the groups' shares u
    and their models' forward FLOPs f, and the prediction interval of a new u: Student's quantile of
    n − 2 degrees of freedom times s·√(1 + 1/n + (x − x̄)²/Σ(x_i − x̄)²), with x = ln f and s the
    residuals' deviation (Draper and Smith, Applied Regression Analysis, §3.1).

    Args:
        forward_flops: f, of one pair, every token computed.
    """
    n = len(groups)
    x = np.log([FORWARD_FLOPS[group.runs[0].model] for group in groups])
    y = np.log([group.utilisation for group in groups])
    from_mean = x - x.mean()
    slope = from_mean @ y / (from_mean @ from_mean)
    residuals = y - y.mean() - slope * from_mean
    deviation = math.sqrt(residuals @ residuals / (n - 2))
    at = math.log(forward_flops) - x.mean()
    middle = y.mean() + slope * at
    reach = float(stdtrit(n - 2, (1 + CONFIDENCE) / 2)) * deviation
    reach *= math.sqrt(1 + 1 / n + at**2 / (from_mean @ from_mean))
    low, high = math.exp(middle - reach), math.exp(middle + reach)
    return Range(float(np.exp(middle)), low, min(1.0, high))
