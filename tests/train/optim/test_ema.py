"""The average of the weights: what it averages, and that evaluating it leaves no trace."""

import pytest
import torch

from clipfast.errors import UserError
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.train.optim.ema import Ema


@pytest.fixture
def model():
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
    return build_model(
        parse_model_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text})
    )


@torch.no_grad()
def step(model, amount=1.0):
    for p in model.parameters():
        if p.requires_grad:
            p += amount
    model.visual.bn1.running_mean += amount
    model.visual.bn1.num_batches_tracked += 1


def copied(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def averages(ema, model):
    with ema.applied():
        return copied(model)


def assert_equal(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_it_is_the_recurrence_whose_decay_warms_up(model):
    ema = Ema(model, decay=0.15)
    expected = model.ln_final.weight.detach().double()
    mean = model.visual.bn1.running_mean.double()
    for n in range(20):
        step(model)
        ema.update()
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.ln_final.weight.detach()
        mean = decay * mean + (1 - decay) * model.visual.bn1.running_mean
    found = averages(ema, model)
    torch.testing.assert_close(found["ln_final.weight"].double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["visual.bn1.running_mean"].double(), mean, rtol=1e-6, atol=0)


def test_evaluating_it_leaves_the_bits_and_the_tensors_even_if_it_raises(model):
    ema = Ema(model, decay=0.9)
    step(model)
    ema.update()
    before = copied(model)
    places = [p.data_ptr() for p in model.parameters()]

    def fails():
        with ema.applied():
            assert not torch.equal(model.logit_scale, before["logit_scale"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert_equal(copied(model), before)
    assert [p.data_ptr() for p in model.parameters()] == places, "an optimizer holds on to them"


def test_a_forward_within_it_is_that_of_a_model_with_the_averages(model):
    ema = Ema(model.eval(), decay=0.9)
    step(model, 0.01)
    ema.update()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        with ema.applied():
            features, weights = model.encode_image(images), copied(model)
        live = model.encode_image(images)
        model.load_state_dict(weights)
        assert torch.equal(features, model.encode_image(images))
    assert not torch.equal(features, live)


def test_its_weights_are_what_is_evaluated_under_open_clips_names(model):
    model.lock_image_tower()
    ema = Ema(model, decay=0.9)
    step(model)
    ema.update()
    weights = ema.weights()
    assert list(weights) == list(model.state_dict())
    assert_equal(weights, averages(ema, model))
    assert not torch.equal(weights["logit_scale"], model.logit_scale)


def test_locked_parameters_are_not_kept(model):
    model.lock_image_tower()
    ema = Ema(model, decay=0.9)
    kept = ema.state_dict()["averages"]
    assert not {name for name in kept if name.startswith("visual.") and "running_" not in name}
    locked = model.visual.conv1.weight
    with ema.applied():
        assert model.visual.conv1.weight.data_ptr() == locked.data_ptr()


def test_a_run_resumed_goes_on_with_the_same_bits(model):
    ema = Ema(model, decay=0.9)
    for _ in range(3):
        step(model)
        ema.update()
    resumed = Ema(model, decay=0.9)
    resumed.load_state_dict(ema.state_dict(), "a.pt")
    for average in (ema, resumed):
        average.update()
    assert_equal(averages(ema, model), averages(resumed, model))


def test_half_precision_weights_are_averaged_in_float32(model):
    model.bfloat16()
    before = model.ln_final.weight.detach().float()
    ema = Ema(model, decay=0.999)
    ema.updates = 10**6
    step(model)
    ema.update()
    kept = ema.state_dict()["averages"]["ln_final.weight"]
    torch.testing.assert_close(kept, before + 0.001)
    with ema.applied():
        assert model.ln_final.weight.dtype == torch.bfloat16


def test_a_mask_of_infinities_is_no_statistic():
    from open_clip import CLIP

    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64}
    model = CLIP(16, vision, text)
    ema = Ema(model, decay=0.9)
    ema.update()
    assert "attn_mask" not in ema.state_dict()["averages"]
    assert all(x.isfinite().all() for x in averages(ema, model).values())


def test_scalars_that_an_engine_reshaped_are_taken(model):
    state = Ema(model, decay=0.9).state_dict()
    state["averages"]["logit_scale"] = torch.tensor([3.0])
    ema = Ema(model, decay=0.9)
    ema.load_state_dict(state, "a.pt")
    assert averages(ema, model)["logit_scale"] == 3.0


def test_the_average_of_another_model_is_refused(model):
    state = Ema(model, decay=0.9).state_dict()
    model.lock_image_tower()
    with pytest.raises(UserError, match=r"checkpoint a.pt: EMA: expected averages of the \d+ ten"):
        Ema(model, decay=0.9).load_state_dict(state, "a.pt")


def test_weights_in_parts_are_refused(model):
    model.logit_scale.ds_id = 0  # as ZeRO 3 marks parameters
    with pytest.raises(UserError, match="--ema-decay: expected weights that are whole"):
        Ema(model, decay=0.9)
