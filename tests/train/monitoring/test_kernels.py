"""The start summary's lines about kernels: which backend, and why."""

import pytest
import torch
from clipfast_kernels import backends, dispatch

from clipfast.models.factory import create_model
from clipfast.train.monitoring import kernels
from clipfast.train.monitoring.kernels import describe_kernels

CPU = torch.device("cpu")


def lines_of(model, loss_backend="auto"):
    return list(
        describe_kernels(
            model, CPU, precision="fp32", loss="contrastive_loss", loss_backend=loss_backend
        )
    )


def test_only_what_the_model_needs_is_named(tiny_model):
    named = [line.split()[1] for line in lines_of(create_model(tiny_model))]
    assert named == ["contrastive_loss", "attention"]
    named = [line.split()[1] for line in lines_of(create_model("digits-conv"))]
    assert named == ["contrastive_loss", "attention", "batch_norm"]


def test_a_backend_that_was_asked_for_is_named_with_the_flag(tiny_model):
    first = lines_of(create_model(tiny_model), "torch")[0]
    assert first == "kernels: contrastive_loss by torch, as --backend says"


def test_the_environments_wish_is_said(tiny_model, monkeypatch):
    for module in (dispatch, kernels):
        monkeypatch.setattr(module, "FROM_ENVIRONMENT", "torch")
    assert "attention by torch, as CLIPFAST_BACKEND says" in lines_of(create_model(tiny_model))[1]


def test_what_could_not_serve_is_named_with_its_reason(tiny_model, monkeypatch):
    from clipfast_kernels.ops.contrastive import cpu

    monkeypatch.setattr(cpu, "unusable", lambda *tensors: ["it is not built"])
    assert backends("contrastive_loss").auto != "cpu"
    assert "since cpu: it is not built" in lines_of(create_model(tiny_model))[0]


@pytest.mark.parametrize("precision", ["amp_bf16", "pure_bf16"])
def test_the_precision_decides_which_kernels_are_asked(tiny_model, precision):
    model = create_model(tiny_model)
    options = {"loss": "contrastive_loss", "loss_backend": "auto"}
    lines = list(describe_kernels(model, CPU, precision=precision, **options))
    x = torch.empty(1, 50, 1, 64, dtype=torch.bfloat16)
    assert f"attention by {backends('attention', x, x, x).auto}" in lines[1]
