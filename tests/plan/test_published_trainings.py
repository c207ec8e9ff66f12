"""What published trainings reached, and what is expected of others, each left out of its own
expectation."""

import math

import pytest

from clipfast.plan.published import (
    FORWARD_FLOPS,
    GROUPS,
    OPEN_CLIP_B16,
    OPEN_CLIP_B32,
    OPEN_CLIP_L14,
    PAPER,
    Group,
    Run,
    expected,
)
from clipfast.plan.request import Model

PAPERS = "arXiv 2103.00020"


def without(left_out):
    return [group for group in GROUPS if not left_out(group)]


def inside(share, reach):
    return reach.low <= share <= reach.high


def test_a_trainings_share_is_three_forwards_over_the_peak():
    run = Run("ViT-L-14", "A100", 400, 400 * 71.0)
    assert run.per_gpu == 71
    assert run.utilisation == pytest.approx(3 * 175.33e9 * 71 / 312e12)
    again = run._replace(recomputed=True)
    assert again.utilisation == pytest.approx(4 * 175.33e9 * 71 / 312e12)
    pair = Group("", (Run("ViT-L-14", "A100", 1, 50), Run("ViT-L-14", "A100", 1, 200)))
    assert pair.utilisation == pytest.approx(3 * 175.33e9 * 100 / 312e12)


@pytest.mark.parametrize("model", ["ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_the_arithmetic_behind_the_shares_is_what_is_counted_on_our_models(model):
    assert Model(model, 18).open_clip_flops.forward == pytest.approx(FORWARD_FLOPS[model], rel=1e-3)


def test_the_papers_run_is_expected_from_what_others_published():
    reach = expected(FORWARD_FLOPS["ViT-L-14"], without(lambda g: g.source.startswith(PAPERS)))
    assert inside(PAPER.utilisation, reach)


@pytest.mark.parametrize(
    ("model", "rates", "recomputed"),
    [
        ("ViT-B-32", [729, 850, OPEN_CLIP_B32.per_gpu], False),
        ("ViT-B-16", [OPEN_CLIP_B16.per_gpu], False),
        ("ViT-L-14", [66, 77, OPEN_CLIP_L14.per_gpu], True),
    ],
)
def test_open_clips_rates_are_expected_from_other_models_and_people(model, rates, recomputed):
    reach = expected(
        FORWARD_FLOPS[model],
        without(lambda g: g.runs[0].model == model and g.runs[0].gpu == "A100"),
    )
    for rate in rates:
        assert inside(Run(model, "A100", 1, rate, recomputed).utilisation, reach), rate


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"{g.source[:8]}-{g.runs[0].model}")
def test_each_group_is_where_the_others_say(group):
    reach = expected(FORWARD_FLOPS[group.runs[0].model], without(lambda g: g is group))
    assert inside(group.utilisation, reach)


def test_the_range_is_students_prediction_interval():
    def group(model, share):
        rate = share * 312e12 / (3 * FORWARD_FLOPS[model])
        return Group("", (Run(model, "A100", 1, rate),))

    groups = [group("ViT-B-32", 0.1), group("ViT-L-14", 0.3), group("ViT-H-14", 0.1)]
    x = [math.log(FORWARD_FLOPS[g.runs[0].model]) for g in groups]
    y = [math.log(share) for share in (0.1, 0.3, 0.1)]
    mean_x, mean_y = sum(x) / 3, sum(y) / 3
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * b for a, b in zip(x, y, strict=True)) / spread
    s = math.sqrt(sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True)))
    at = math.log(41.09e9) - mean_x
    t = math.tan(math.pi * 0.45)  # Student's 95 % of one degree of freedom, Cauchy's
    low = math.exp(mean_y + slope * at - t * s * math.sqrt(4 / 3 + at**2 / spread))
    found = expected(41.09e9, groups)
    assert found.low == pytest.approx(low)
    assert found.middle == pytest.approx(math.exp(mean_y + slope * at))
    assert found.high == 1  # of the peak
