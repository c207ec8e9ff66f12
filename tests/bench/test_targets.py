"""What trainings need is what runs published, or arithmetic that a count of operations confirms."""

import open_clip
import pytest
import torch
from clipfast_bench.feeding.targets import (
    ESTIMATE,
    GIVEN,
    PUBLISHED,
    ceiling,
    parse_target,
    rates_of,
)
from torch.utils.flop_counter import FlopCounterMode

from clipfast.errors import UserError
from clipfast.plan.counting import open_clip_flops
from clipfast.plan.towers import PlannedModel


@pytest.mark.parametrize(
    ("model", "gpu", "rate"),
    [("ViT-L-14", "V100", 48), ("ViT-L-14", "A100", 71), ("ViT-B-32", "A100", 786)],
)
def test_a_published_rate_is_its_runs_samples_over_its_gpu_seconds(model, gpu, rate):
    (published,) = [r for r in rates_of(model, gpu) if r.kind == PUBLISHED]
    assert published.images_per_second == pytest.approx(rate, abs=0.5)


@pytest.mark.parametrize(
    ("model", "gpu", "rate"),
    [
        ("ViT-L-14", "A100", 237),
        ("ViT-L-14", "H100", 750),
        ("RN50", "H100", 7515),
        ("ViT-B-32", "A100", 2800),
        ("ViT-B-32", "H100", 8900),
    ],
)
def test_a_ceiling_is_two_fifths_of_the_peak(model, gpu, rate):
    estimate = ceiling(model, gpu)
    assert estimate.kind == ESTIMATE
    assert estimate.images_per_second == pytest.approx(rate, rel=0.01)


def test_a_forwards_arithmetic_is_what_a_counter_finds_in_open_clips_model():
    model = open_clip.create_model("ViT-S-32").train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long))
    ours = open_clip_flops(PlannedModel("ViT-S-32")).forward
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.002)


def test_a_target_names_model_gpus_and_perhaps_a_rate():
    target = parse_target("ViT-L/14@400xA100")
    assert (target.model, target.gpus, target.gpu) == ("ViT-L-14", 400, "A100")
    assert [rate.kind for rate in target.rates] == [PUBLISHED, ESTIMATE]
    given = parse_target("my-model@8xB200=1.5e3")
    assert given.name == "my-model on 8 × B200"
    assert [(rate.kind, rate.images_per_second) for rate in given.rates] == [(GIVEN, 1500)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ViT-B-32", "expected MODEL@NxGPU, .* got 'ViT-B-32'"),
        ("ViT-B-32@0xH100", "expected MODEL@NxGPU, .* got 'ViT-B-32@0xH100'"),
        ("ViT-B-32@8xB200", "expected one of V100, .* H200, or a rate as in .* got B200"),
        ("ViT-Z-1@8xH100", "model: expected a .json file or one of .* got 'ViT-Z-1'"),
        ("ViT-B-32@8xH100=0", "expected a positive rate; got '0'"),
        ("ViT-B-32@8xH100=1e+e", "expected a positive rate; got '1e\\+e'"),
    ],
)
def test_a_target_that_cannot_be_told_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_target(text)
