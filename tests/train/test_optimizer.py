"""Optimizer groups and schedule are open_clip's, or checkpoints would not pass between the two."""

import pytest
import torch

from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.train.optimizer import adamw, learning_rate, load_optimizer_state


@pytest.fixture
def small_model():
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    raw = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    return build_model(parse_model_config(raw))


def test_gains_biases_and_the_scale_do_not_decay(small_model):
    optimizer = adamw(small_model, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    names = {id(p): n for n, p in small_model.named_parameters()}
    plain, decayed = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.2]
    assert len(plain) + len(decayed) == len(names)
    assert {"logit_scale", "visual.bn1.weight", "ln_final.bias"} <= set(plain)
    assert {"visual.conv1.weight", "text_projection", "positional_embedding"} <= set(decayed)
    order = [n for n, _ in small_model.named_parameters()]
    assert plain == [n for n in order if n in plain], "positions are names in a saved state"


def test_a_state_without_fused_keeps_the_fused_step(small_model):
    settings = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
    optimizer = adamw(small_model, **settings)
    groups = [{"params": g["params"]} for g in optimizer.param_groups]
    theirs = torch.optim.AdamW(groups, lr=1e-3)
    for p in small_model.parameters():
        p.grad = torch.ones_like(p)
    theirs.step()
    load_optimizer_state(optimizer, theirs.state_dict(), "a.pt")
    assert all(group["fused"] for group in optimizer.param_groups)
    optimizer.step()


def test_the_schedule_is_open_clips():
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    cosine = scheduler.cosine_lr(optimizer, 3e-4, 7, 50)
    constant = scheduler.const_lr(optimizer, 3e-4, 7, 50)
    for step in range(50):
        settings = {"base": 3e-4, "warmup": 7, "total": 50}
        assert learning_rate(step, **settings, decay=True) == pytest.approx(cosine(step))
        assert learning_rate(step, **settings, decay=False) == pytest.approx(constant(step))
