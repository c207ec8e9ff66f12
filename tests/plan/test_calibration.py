"""Measurements take the place of assumptions, where they hold, and say so."""

import json

import pytest

from clipfast.errors import UserError
from clipfast.plan.calibration import read_calibration
from clipfast.plan.hardware import GPUS
from clipfast.plan.request import Model

H100 = GPUS["H100"]


def step(model):
    return {
        "name": "test_train_step[512]",
        "params": {"model": model, "batch_size": 512},
        "stats": {"median": 0.1},
        "extra_info": {"op": "train_step", "dtype": "bfloat16", "mean_tokens": 18},
    }


LOADER = {
    "name": "test_loader[original]",
    "params": {"kind": "original"},
    "stats": {"median": 1.0},
    "extra_info": {"op": "loader", "figures": {"images/s": 400.0}},
}


def written(tmp_path, rows, gpu="NVIDIA H100 80GB HBM3"):
    path = tmp_path / "bench.json"
    machine = {"gpu": gpu, "cpu": {"brand_raw": "Some CPU"}}
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": rows}))
    return path


def test_a_measured_step_is_its_arithmetic_over_its_time_and_the_peak(small_vit, tmp_path):
    found = read_calibration(written(tmp_path, [step(small_vit), LOADER]), H100, "amp_bf16")
    share = 512 * Model(small_vit, 18).flops.step / 0.1 / 989e12
    assert found.utilisation.value.middle == pytest.approx(share)
    assert "measured on NVIDIA H100 80GB HBM3, 1 steps of one GPU" in found.utilisation.source
    assert found.decode_rate.value == 400
    assert found.decode_rate.source.startswith("measured on Some CPU, one core")


@pytest.mark.parametrize(
    ("gpu", "precision", "reason"),
    [
        (None, "amp_bf16", "steps of a CPU, which say nothing of H100"),
        ("NVIDIA A100-SXM4-80GB", "amp_bf16", "which say nothing of H100"),
        ("NVIDIA H100 80GB HBM3", "fp32", "no step in float32"),
    ],
)
def test_steps_of_another_machine_or_precision_are_left_out_with_the_reason(
    tmp_path, gpu, precision, reason
):
    found = read_calibration(written(tmp_path, [step("ViT-B-32"), LOADER], gpu), H100, precision)
    assert found.utilisation.value is None
    assert reason in found.utilisation.source
    assert found.decode_rate.value == 400


def test_what_bench_feed_stored_serves_too(tmp_path):
    path = tmp_path / "feed.json"
    feedings = [
        {"device": "cpu", "images_per_core_second": rate, "decoder": "native"} for rate in (90, 120)
    ]
    path.write_text(json.dumps({"feedings": feedings, "reading": {"bytes_per_sample": 54_000}}))
    found = read_calibration(path, H100, "amp_bf16")
    assert (found.decode_rate.value, found.image_kb.value) == (120, 54)
    assert found.utilisation.value is None


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"benchmarks": [{"name": "x"}]}'])
def test_a_file_of_another_kind_is_a_sentence(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"--calibration {path}: expected"):
        read_calibration(path, H100, "amp_bf16")


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_calibration(tmp_path / "none.json", H100, "amp_bf16")
