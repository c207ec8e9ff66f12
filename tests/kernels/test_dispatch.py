"""backends() explains, an explicit backend never falls back, the environment sets the default."""

import subprocess
import sys

import pytest
import torch
from clipfast_kernels import backends, contrastive_loss, dispatch


def in_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("op", ["contrastive_loss", "sigmoid_loss", "gathered_similarity"])
def test_every_backend_is_listed_with_its_reason(op):
    reasons = backends(op).reasons
    assert list(reasons) == ["cpu", "torch", "triton", "reference", "cuda"]
    assert reasons["reference"] == []
    assert reasons["torch"] == []
    assert "no CUDA kernel" in reasons["cuda"][0]


def test_auto_is_the_first_backend_that_takes_the_tensors():
    whole = torch.ones(2, 2)
    found = backends("contrastive_loss", whole, whole, 1.0)
    assert found.auto == next(name for name, why in found.reasons.items() if not why)


def test_tensors_elsewhere_are_a_reason_that_names_the_device():
    meta = torch.ones(2, 2, device="meta")
    found = backends("contrastive_loss", image_features=meta, text_features=meta)
    assert "meta" in found.reasons["cpu"][0]
    assert found.auto == "torch"


def test_an_explicit_backend_that_cannot_serve_raises_with_its_reason():
    x = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="'cuda': clipfast has no CUDA kernel for this op"):
        contrastive_loss(x, x, 1.0, backend="cuda")
    with pytest.raises(RuntimeError, match="'cpu' cannot serve this call: .*meta"):
        contrastive_loss(x.to("meta"), x.to("meta"), torch.ones((), device="meta"), backend="cpu")


def test_without_triton_its_backend_gives_the_reason_and_the_others_work():
    code = "import sys; sys.modules['triton'] = None\n"
    code += "import torch; from clipfast_kernels import backends, sigmoid_loss\n"
    code += "print(backends('sigmoid_loss').reasons['triton'])\n"
    code += "x = torch.ones(2, 2); print(sigmoid_loss(x, x, 1.0, 0.0, backend='torch'))"
    done = in_new_process(code)
    assert "needs a package that is not here" in done.stdout, done.stderr
    assert "tensor(" in done.stdout


def test_an_unknown_op_is_a_sentence():
    with pytest.raises(ValueError, match="op: expected one of attention.*; got 'attend'"):
        backends("attend")


def test_the_environment_sets_the_default_backend():
    done = in_new_process(
        "from clipfast_kernels import backends; print(backends('contrastive_loss').auto)",
        CLIPFAST_BACKEND="reference",
    )
    assert done.stdout.strip() == "reference", done.stderr


def test_an_unknown_backend_in_the_environment_is_named(monkeypatch):
    monkeypatch.setattr(dispatch, "FROM_ENVIRONMENT", "quick")
    x = torch.ones(2, 2)
    assert backends("contrastive_loss").auto is None
    with pytest.raises(ValueError, match="CLIPFAST_BACKEND: expected one of .*; got 'quick'"):
        contrastive_loss(x, x, 1.0)


def test_a_default_from_the_environment_never_falls_back_either(monkeypatch):
    monkeypatch.setattr(dispatch, "FROM_ENVIRONMENT", "cuda")
    x = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="backend 'cuda': clipfast has no CUDA kernel"):
        contrastive_loss(x, x, 1.0)
