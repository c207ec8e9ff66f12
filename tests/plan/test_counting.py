"""What is counted on models without values is what real ones have, compute and keep."""

import pytest
import torch
from clipfast_kernels.ops.attention.cost import attention_flops
from measuring import Trainer, net_allocated
from torch.utils.flop_counter import FlopCounterMode

from clipfast import create_model
from clipfast.errors import UserError
from clipfast.models.config import model_names
from clipfast.plan.counting import flops, kept_precision, open_clip_flops, parameters, saved
from clipfast.plan.request import Model
from clipfast.plan.towers import PlannedModel

TOKENS = 11
BILLION = 1e9


@pytest.mark.parametrize("precision", ["fp32", "amp_bf16", "bf16", "fp16", "pure_bf16"])
@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_parameters_are_as_many_and_as_large_as_the_trainers(kind, precision, request):
    name = request.getfixturevalue(kind)
    real = create_model(name, precision=precision)
    counted = parameters(PlannedModel(name, precision).model, precision)
    tensors = list(real.parameters())
    assert counted.tensors == len(tensors)
    assert counted.numbers == sum(p.numel() for p in tensors)
    assert counted.bytes == sum(p.nbytes for p in tensors)
    assert counted.buffer_bytes == sum(b.nbytes for b in real.buffers())


def test_published_models_have_their_published_sizes():
    sizes = {name: parameters(PlannedModel(name).model, "fp32").numbers for name in SIZES}
    assert sizes["ViT-B-32"] == 151_277_313
    assert {name: round(n / 1e6, 1) for name, n in sizes.items()} == SIZES


SIZES = {"ViT-B-32": 151.3, "ViT-L-14": 427.6, "RN50": 102.0, "RN50x64": 623.3}


QUICK = ("ViT-B-32", "digits-conv")
NAMES = [name for name in model_names() if "quickgelu" not in name and name not in QUICK]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
)
def test_every_built_in_model_can_be_counted(name):
    model = Model(name, 18)
    assert model.open_clip_flops.step > model.flops.step > 2 * model.flops.forward > 0
    kept = model.saved("amp_bf16", None)
    assert kept.all.each > kept.checkpointed.each > 0 or kept.block.each == 0


@pytest.mark.parametrize(
    ("name", "gflop", "counts_norms"),
    [("ViT-B-16", 41.09, False), ("ViT-L-14", 175.33, False), ("RN50", 18.18, True)],
)
def test_open_clips_arithmetic_is_that_of_its_published_profile(name, gflop, counts_norms):
    """Which counts ResNets' normalisations and pools too, not only products."""
    found = open_clip_flops(PlannedModel(name)).forward / BILLION
    assert found == pytest.approx(gflop, rel=0.05 if counts_norms else 1e-3)
    assert found <= 1.001 * gflop


@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_the_arithmetic_is_what_a_counter_finds_in_a_real_step(kind, request):
    """Of the trainer's own towers; of attention torch's counter knows nothing."""
    name = request.getfixturevalue(kind)
    trainer = Trainer(name)
    batch = trainer.batch(3, TOKENS)
    operators = torch.ops.clipfast_kernels
    formulas = {operators.attention_fwd: ours_forward, operators.attention_bwd: ours_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        features = trainer.features(batch)
        forward = counter.get_total_flops()
        sum(x.sum() for x in features).backward()
        both = counter.get_total_flops()
    planned = flops(PlannedModel(name), TOKENS)
    assert 3 * planned.forward == pytest.approx(forward, rel=2e-3)
    assert 3 * planned.backward == pytest.approx(both - forward, rel=2e-3)


def ours_forward(packs, cu_q, cu_k, batch, max_q, max_k, causal, *_, **__):
    *_, heads, width = packs[0]
    pairs = max_q * (max_q + 1) // 2 if causal else max_q * max_k
    return attention_flops(batch * pairs, heads, width, backward=False)


def ours_backward(d_out, packs, out, lse, *where, **rest):
    return 5 * ours_forward(packs, *where) // 2


def test_packed_captions_and_one_token_in_the_last_block_are_what_is_spared(small_vit):
    model = PlannedModel(small_vit)
    whole, short = flops(model, 32), flops(model, 16)
    assert short.forward < whole.forward < open_clip_flops(model).forward
    between = flops(model, 24.5)
    at_24, at_25 = flops(model, 24), flops(model, 25)
    assert between.step == pytest.approx((at_24.step + at_25.step) / 2)


@pytest.mark.parametrize("pairs", [1, 3, 8])
@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_what_autograd_keeps_on_a_cpu_is_what_was_counted(kind, pairs, request):
    name = request.getfixturevalue(kind)
    counted = saved(PlannedModel(name), TOKENS).all.at(pairs)
    assert counted == pytest.approx(Trainer(name).kept(pairs, TOKENS), rel=0.05)


@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_what_the_allocator_gave_out_and_did_not_get_back_is_what_was_counted(kind, request):
    name = request.getfixturevalue(kind)
    trainer = Trainer(name)
    batch = trainer.batch(16, TOKENS)
    trainer.features(batch)
    counted = saved(PlannedModel(name), TOKENS).all.at(16)
    assert counted == pytest.approx(net_allocated(lambda: trainer.features(batch)), rel=0.05)


@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_what_autograd_keeps_in_half_precision_is_what_was_counted(kind, request):
    name = request.getfixturevalue(kind)
    half = saved(PlannedModel(name, kept_precision("bf16", None)), TOKENS).all.at(8)
    assert half == pytest.approx(Trainer(name, "bf16").kept(8, TOKENS), rel=0.05)


def test_autocast_keeps_what_half_precision_does_and_copies_of_the_weights(small_vit):
    half = saved(PlannedModel(small_vit, kept_precision("amp_bf16", None)), TOKENS).all.at(8)
    copies = parameters(PlannedModel(small_vit).model, "amp_bf16").cast_bytes
    measured = Trainer(small_vit, "amp_bf16").kept(8, TOKENS)
    assert half + copies == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("kind", ["small_vit", "small_resnet"])
def test_checkpointing_keeps_blocks_inputs(kind, request):
    name = request.getfixturevalue(kind)
    trainer = Trainer(name)
    trainer.model.set_grad_checkpointing()
    batch = trainer.batch(16, TOKENS)
    trainer.features(batch)
    counted = saved(PlannedModel(name), TOKENS).checkpointed.at(16)
    assert counted == pytest.approx(net_allocated(lambda: trainer.features(batch)), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pairs"), [("ViT-B-32", 4), ("RN50", 2)])
def test_a_published_models_memory_is_what_was_counted(name, pairs):
    trainer = Trainer(name)
    batch = trainer.batch(pairs, 18)
    trainer.features(batch)
    counted = saved(PlannedModel(name), 18).all.at(pairs)
    assert counted == pytest.approx(trainer.kept(pairs, 18), rel=0.05)
    assert counted == pytest.approx(net_allocated(lambda: trainer.features(batch)), rel=0.05)


def test_a_text_tower_that_needs_values_is_refused(tmp_path):
    path = tmp_path / "hf.json"
    path.write_text(
        '{"embed_dim": 8, "vision_cfg": {"layers": 1, "width": 64, "patch_size": 32}, '
        '"text_cfg": {"hf_model_name": "some/encoder"}}'
    )
    with pytest.raises(UserError, match="expected CLIP's own text tower; got some/encoder"):
        PlannedModel(str(path))
