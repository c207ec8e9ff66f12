"""Optimizers are open_clip's and timm's, in their groups, or checkpoints would not pass between
the trainers."""

import logging
import os
import sys
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from torch.utils.cpp_extension import get_default_build_root

from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.train import parse_args
from clipfast.train.optim.optimizers import (
    describe_optimizer,
    load_optimizer_state,
    make_optimizer,
    warnings_of,
)

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
CPU = torch.device("cpu")


@pytest.fixture
def model():
    return ours(VIT)


def ours(vision):
    return build_model(
        parse_model_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})
    )


def parsed(*flags):
    return parse_args(["--train-data", "x.tar", "--model", "ViT-B-32", *flags])


def optimizer_of(model, *flags):
    return make_optimizer(parsed(*flags), model, CPU)


def names_of(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return [[names[p] for p in group["params"]] for group in optimizer.param_groups]


def settings_of(optimizer):
    groups = ({k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups)
    return optimizer.__class__, list(groups)


def step(model, optimizer):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def open_clips_adamw(model):
    """As open_clip_train 3.3.0's main makes it for a ViT."""
    named = list(model.named_parameters())
    out = [n for n, p in named if p.ndim < 2 or any(s in n for s in ("bn", "ln", "bias", "_scale"))]
    groups = [
        {"params": [p for n, p in named if n in out and p.requires_grad], "weight_decay": 0.0},
        {"params": [p for n, p in named if n not in out and p.requires_grad], "weight_decay": 0.2},
    ]
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
def test_adamw_has_open_clips_groups_and_is_fused(vision):
    model, theirs = ours(vision), open_clip.CLIP(16, vision, TEXT)
    for each in (model, theirs):
        each.lock_text_tower()
    optimizer, reference = optimizer_of(model, "--opt", "AdamW"), open_clips_adamw(theirs)
    assert names_of(model, optimizer) == names_of(theirs, reference)
    kind, groups = settings_of(optimizer)
    assert all(group["fused"] for group in groups)
    assert (kind, [group | {"fused": None} for group in groups]) == settings_of(reference)


def test_open_clips_state_goes_on_and_keeps_the_fused_step(model):
    theirs = open_clip.CLIP(16, VIT, TEXT)
    theirs.load_state_dict(model.state_dict())
    reference, optimizer = open_clips_adamw(theirs), optimizer_of(model)
    step(theirs, reference)
    model.load_state_dict(theirs.state_dict())
    load_optimizer_state(optimizer, reference.state_dict(), "a.pt")
    assert all(group["fused"] for group in optimizer.param_groups)
    step(theirs, reference)
    step(model, optimizer)
    for (name, a), b in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("vision", [VIT, RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize(
    ("name", "flags", "settings"),
    [
        ("lion", (), {}),
        ("lamb", ("--beta1", ".8", "--beta2", ".9", "--eps", "1e-5"), {"eps": 1e-5}),
        ("sgd", ("--momentum", ".5"), {"momentum": 0.5}),
        ("adafactor", ("--wd", "0", "--eps", "1e-9"), {"weight_decay": 0, "eps": 1e-9}),
    ],
)
def test_timms_optimizers_are_made_as_open_clip_makes_them(vision, name, flags, settings):
    from timm.optim import create_optimizer_v2

    model, theirs = ours(vision), open_clip.CLIP(16, vision, TEXT)
    optimizer = optimizer_of(model, "--opt", f"timm/{name}", "--lr", "1e-3", *flags)
    settings = {"weight_decay": 0.2, "eps": None} | settings
    if "--beta1" in flags:
        settings["betas"] = (0.8, 0.9)
    reference = create_optimizer_v2(theirs, name, lr=1e-3, **settings)
    assert names_of(model, optimizer) == names_of(theirs, reference)
    assert settings_of(optimizer) == settings_of(reference)


def test_timms_groups_can_be_cut_by_layer_and_by_name(model):
    flags = ("--opt", "timm/lion", "--lr", "1e-3", "--wd-exclude", "*proj*")
    whole = optimizer_of(model, *flags)
    plain, decayed = names_of(model, whole)
    assert {"positional_embedding", "visual.class_embedding", "text_projection"} <= set(plain)
    assert "visual.conv1.weight" in decayed
    cut = optimizer_of(model, *flags, "--image-layer-decay", "0.5")
    assert {group["lr_scale"] for group in cut.param_groups} == {0.125, 0.25, 0.5, 1.0}


def test_lamb_steps_each_layer_by_its_trust_ratio_and_does_not_clip(model):
    optimizer = optimizer_of(model, "--opt", "lamb", "--wd", "0", "--lr", "0.1", "--eps", "1e-12")
    weight = model.visual.proj
    norm = weight.norm().item()
    for group in optimizer.param_groups:
        group["weight_decay"] = 1e-9  # without decay there is no trust ratio
    before = weight.detach().clone()
    step(model, optimizer)
    assert (weight - before).norm().item() == pytest.approx(0.1 * norm, rel=1e-3)
    assert optimizer.defaults["max_grad_norm"] is None


def test_lambs_state_goes_on(model):
    flags = ("--opt", "lamb")
    optimizer = optimizer_of(model, *flags)
    step(model, optimizer)
    resumed = optimizer_of(model, *flags)
    load_optimizer_state(resumed, deepcopy(optimizer.state_dict()), "a.pt")
    before = [p.detach().clone() for p in model.parameters()]
    step(model, optimizer)
    expected = [p.detach().clone() for p in model.parameters()]
    for p, x in zip(model.parameters(), before, strict=True):
        p.data.copy_(x)
    step(model, resumed)
    for p, x in zip(model.parameters(), expected, strict=True):
        assert torch.equal(p, x)


def test_further_arguments_reach_the_optimizer(model):
    optimizer = optimizer_of(model, "--opt-kwargs", "amsgrad=True", "fused=False")
    assert optimizer.defaults["amsgrad"]
    assert not optimizer.defaults["fused"]
    lamb = optimizer_of(model, "--opt", "lamb", "--opt-kwargs", "trust_clip=True")
    assert lamb.defaults["trust_clip"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--opt", "adam"], "--opt: expected adamw, lamb, .* or timm/NAME; got 'adam'"),
        (["--opt", "timm/none", "--lr", "1"], "--opt timm/none: Optimizer none not found"),
        (["--opt", "timm/lion"], "--lr: expected a learning rate for --opt timm/lion; got none"),
        (
            ["--opt", "timm/lion", "--lr", "1", "--beta1", ".9"],
            "--beta1, --beta2: expected both or neither for --opt timm/lion; got 0.9 and None",
        ),
        (["--opt-kwargs", "nesterov=1"], "--opt adamw: .* unexpected keyword argument 'nesterov'"),
        (["--opt", "apex"], "--opt apex: expected a GPU; got cpu"),
        (["--wd-exclude", "no.such"], "--wd-exclude: expected patterns .*; got 'no.such'"),
        (["--lr-scheduler", "const-cooldown"], "--epochs-cooldown: expected the number of epochs"),
        (["--image-layer-decay", "0"], "--image-layer-decay: expected 0 < decay ≤ 1; got 0.0"),
        (["--ema-decay", "1"], "--ema-decay: expected 0 < decay < 1; got 1.0"),
        (["--lr-cooldown-power", "-1"], "--lr-cooldown-power: expected 0 or more; got -1.0"),
    ],
)
def test_what_cannot_be_made_is_a_sentence(model, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        optimizer_of(model, *flags)


def test_an_apex_that_is_not_nvidias_is_told_without_running_it(model, tmp_path, monkeypatch):
    args, gpu = parsed("--opt", "apex"), torch.device("cuda")
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    with pytest.raises(UserError, match="expected NVIDIA's apex; got none: install it from"):
        make_optimizer(args, model, gpu)
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('a web framework')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="got the package of that name on PyPI, which is another"):
        make_optimizer(args, model, gpu)


@pytest.mark.parametrize(("name", "package"), [("lamb", "timm"), ("deepspeed", "deepspeed")])
def test_a_package_that_is_missing_is_named(model, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"expected {package}; got none: pip install {package}"):
        optimizer_of(model, "--opt", name)


@pytest.mark.slow
def test_deepspeeds_adam_steps_as_torchs(model):
    pytest.importorskip("deepspeed")
    builds = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if not list(builds.glob("**/cpu_adam.so")):
        pytest.skip("its kernel is not built, which takes minutes")
    flags = ("--opt", "deepspeed")
    twin = ours(VIT)
    twin.load_state_dict(model.state_dict())
    optimizer, reference = optimizer_of(model, *flags), optimizer_of(twin)
    for _ in range(3):
        step(model, optimizer)
        step(twin, reference)
    for p, x in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, x, rtol=1e-5, atol=1e-6)


def test_a_state_of_other_parameters_is_refused(model):
    state = optimizer_of(model).state_dict()
    decayed = optimizer_of(model, "--image-layer-decay", "0.5")
    with pytest.raises(UserError, match=r"checkpoint a.pt: .*\(image.0.no_decay\).* flags that it"):
        load_optimizer_state(decayed, state, "a.pt")
    with pytest.raises(UserError, match=r"expected groups of \d+, \d+ parameters, .*; got \d+ \("):
        load_optimizer_state(optimizer_of(model), decayed.state_dict(), "a.pt")
    other = optimizer_of(model, "--text-layer-decay", "0.5")
    with pytest.raises(UserError, match="go on with the --lock, layer-decay and --wd-exc"):
        load_optimizer_state(other, decayed.state_dict(), "a.pt")


def test_the_state_of_another_optimizer_is_refused(model):
    adamw, lamb = optimizer_of(model), optimizer_of(model, "--opt", "lamb")
    for optimizer in (adamw, lamb):
        step(model, optimizer)
    with pytest.raises(UserError, match="expected AdamW's state, .*; got one of exp_avg, exp_avg_"):
        load_optimizer_state(adamw, lamb.state_dict(), "a.pt")
    with pytest.raises(UserError, match="expected Lamb's state, .* go on with the --opt that it"):
        load_optimizer_state(lamb, adamw.state_dict(), "a.pt")


def test_a_hyperparameter_that_the_checkpoint_overrides_is_told(model, caplog):
    state = optimizer_of(model).state_dict()
    changed = optimizer_of(model, "--wd", "0.1")
    with caplog.at_level(logging.WARNING):
        load_optimizer_state(changed, state, "a.pt")
    (record,) = caplog.records
    assert "goes on with its weight_decay of 0.2, not the 0.1 asked for" in record.message
    assert changed.param_groups[1]["weight_decay"] == 0.2


def test_layers_keep_their_rates_and_names_through_a_checkpoint(model):
    flags = ("--image-layer-decay", "0.5")
    optimizer, resumed = optimizer_of(model, *flags), optimizer_of(model, *flags)
    step(model, optimizer)
    load_optimizer_state(resumed, optimizer.state_dict(), "a.pt")
    assert settings_of(resumed) == settings_of(optimizer)
    assert resumed.param_groups[0]["name"] == "image.0.no_decay"


def test_the_optimizer_is_told(model):
    args = parsed("--image-layer-decay", "0.5", "--ema-decay", "0.99")
    lines = list(describe_optimizer(args, make_optimizer(args, model, CPU)))
    total = len(list(model.parameters()))
    assert lines[0].startswith("optimizer: AdamW (--opt adamw, fused), betas (0.9, 0.98), eps 1e-0")
    assert lines[0].endswith(f" of {total} tensors")
    assert lines[1] == "layer decay: 9 groups, from 0.125 of the learning rate up"
    assert "decay 0.99" in lines[2]


def test_flags_that_change_nothing_are_told():
    flags = ("--momentum", ".9", "--epochs-cooldown", "2", "--lr-cooldown-power", "2")
    assert list(warnings_of(parsed(*flags))) == [
        "--momentum: without --opt timm/NAME it changes nothing, as in open_clip",
        *(
            f"--{name}: without --lr-scheduler const-cooldown it changes nothing, as in open_clip"
            for name in ("epochs-cooldown", "lr-cooldown-power")
        ),
    ]
    assert not list(warnings_of(parsed()))
