"""Runs of the DeepSpeed engine for its tests: what each rank of a real process group does.

B samples of a rank's micro-batch.
"""

import os

import numpy as np
import torch
import torch.distributed as dist
from clipfast_kernels import contrastive_loss
from torch import nn

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.models.clip import CLIP
from clipfast.models.vit import VisionTransformer
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.engines.deepspeed.config import forward_precision
from clipfast.train.engines.deepspeed.engine import make_deepspeed_engine
from clipfast.train.engines.plain import PlainEngine

SAMPLES = 8  # of a global batch
CPU = torch.device("cpu")


def this_world():
    if not dist.is_initialized():
        return World()
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    return World(rank, size, device=CPU, group=group, control=group)


def flags(*more):
    return parse_args(
        [
            *("--train-data", "unread", "--model", "ViT-B-32", "--batch-size", str(SAMPLES)),
            *("--precision", "fp32", "--device", "cpu", "--lr", "2e-4", "--wd", "0.2", *more),
        ]
    )


def tiny_clip():
    """Of a vocabulary so small that a step is milliseconds."""
    visual = VisionTransformer(
        image_size=32,
        patch_size=8,
        width=32,
        layers=2,
        heads=2,
        mlp_ratio=2.0,
        output_dim=16,
        activation=nn.GELU,
    )
    return CLIP(
        visual,
        embed_dim=16,
        context_length=32,
        vocab_size=512,
        width=32,
        heads=2,
        layers=2,
        mlp_ratio=2.0,
    )


def global_batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    text = torch.zeros(SAMPLES, 32, dtype=torch.int64)
    for row in range(SAMPLES):
        length = 3 + row % 5
        text[row, : length + 1] = torch.randint(1, 500, (length + 1,), generator=generator)
        text[row, length + 1] = 511
    return Batch(images, text, np.arange(SAMPLES))


def rows(batch, begin, end):
    return Batch(batch.images[begin:end], batch.text[begin:end], batch.numbers[begin:end])


def make_engine(args, world, change=None):
    torch.manual_seed(0)
    model = tiny_clip()
    if change is not None:
        change(model)
    on_deepspeed = args.zero_stage is not None
    encoder = Encoder(
        model,
        precision=forward_precision(args, CPU) if on_deepspeed else "fp32",
        normalize=Normalize(args.image_mean, args.image_std, CPU),
        device=CPU,
        compiled=False,
    )
    model.train()
    if on_deepspeed:
        return make_deepspeed_engine(args, model, encoder, world, lambda m: make_adamw(args, m))
    return PlainEngine(model, make_adamw(args, model), encoder, world, max_norm=args.grad_clip_norm)


def make_adamw(args, model):
    """Of three groups: one empty, one with a learning rate of its own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    slow = {"params": [p for name, p in named if p.ndim < 2], "weight_decay": 0.0, "lr_scale": 0.5}
    rest = {"params": [p for name, p in named if p.ndim >= 2], "weight_decay": args.wd}
    groups = [slow, {"params": [], "weight_decay": 0.1}, rest]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def objective(world):
    def loss_of(encoded, batch):
        return contrastive_loss(encoded.image, encoded.text, encoded.logit_scale, group=world.group)

    return loss_of


def step(engine, world, number, spoil=None):
    """One step on this rank's part: the loss of the whole batch, and what became of it."""
    size = SAMPLES // world.size
    part = rows(global_batch(number), world.rank * size, (world.rank + 1) * size)
    encoded = engine.encode(part)
    loss = objective(world)(encoded, part)
    if spoil is not None:
        spoil(encoded)
    engine.backward(loss)
    return loss.item(), engine.step(1e-4)


def losses(engine, world, first, count):
    return [step(engine, world, number)[0] for number in range(first, first + count)]


def step_of_micro_batches(engine, world, number, count):
    """As the loop does it: features first, then each micro-batch again, with its graph."""
    size = SAMPLES // world.size
    part = rows(global_batch(number), world.rank * size, (world.rank + 1) * size)
    parts = [rows(part, i * size // count, (i + 1) * size // count) for i in range(count)]
    with torch.no_grad():
        encoded = [engine.encode(micro) for micro in parts]
    leaves = [
        torch.cat([e.image for e in encoded]).requires_grad_(),
        torch.cat([e.text for e in encoded]).requires_grad_(),
        encoded[0].logit_scale.clone().requires_grad_(),
    ]
    loss = contrastive_loss(*leaves, group=world.group)
    loss.backward()
    d_image, d_text = (leaf.grad.split(size // count) for leaf in leaves[:2])
    for place, micro in enumerate(parts):
        last = place == count - 1
        again = engine.encode(micro, last=last)
        product = (again.image * d_image[place]).sum() + (again.text * d_text[place]).sum()
        if last:
            product = product + again.logit_scale * leaves[2].grad
        engine.backward(product, last=last)
    return loss.item(), engine.step(1e-4)


def weights(engine):
    """All of them, on every rank; a copy."""
    with engine.whole_model() as model:
        return {name: x.detach().float().clone() for name, x in model.state_dict().items()}


def lock_image(model):
    model.lock_image_tower()


def lock_image_and_recompute(model):
    model.lock_image_tower()
    model.set_grad_checkpointing()


def set_scale(value):
    def change(model):
        model.logit_scale.data.fill_(value)

    return change


# What ranks do in one go: a start of DeepSpeed costs more than all of these steps.

STEPS = 20
STAGES = ("0", "1", "2", "3", "3 cut")  # the last one: not one weight stays whole between steps
SHARED_OUT = STAGES[1:4]


CUT = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


def stage_flags(stage, folder, *more):
    if stage != "3 cut":
        return flags("--zero-stage", stage, *more)
    return flags("--deepspeed-config", str(folder / "cut.json"), *more)


def two_ranks(folder, plain):
    """Everything that two ranks show, by what it is and the stage.

    Args:
        plain: a checkpoint of the plain engine after 3 steps.
    """
    world, shown = this_world(), {}
    os.chdir(folder / "empty")
    for stage in STAGES:
        engine = make_engine(stage_flags(stage, folder), world)
        shown["losses", stage] = losses(engine, world, 0, STEPS)
        shown["weights", stage] = weights(engine)
        shown["written", stage] = engine.checkpoint()
        write(engine, folder / f"two {stage}", world)
        shown["discarded", stage] = begin_and_discard(engine, world)
        shown["spoilt", stage] = spoil_one_rank(engine, world)
        shown["on", stage] = losses(engine, world, STEPS, 3)
        engine = make_engine(stage_flags(stage, folder), world, set_scale(5.0))
        engine.load_checkpoint(plain, "plain.pt")
        shown["loaded", stage] = losses(engine, world, 3, 3)
        shown["returned", stage] = engine.checkpoint()
        clip = stage_flags(stage, folder, "--grad-clip-norm", "0.5", "--accum-freq", "2")
        engine = make_engine(clip, world, lock_image_and_recompute)
        shown["clipped", stage] = [step_of_micro_batches(engine, world, n, 2) for n in range(3)]
        shown["locked", stage] = engine.checkpoint()
        engine = make_engine(stage_flags(stage, folder), world, set_scale(5.0))
        step(engine, world, 0)
        shown["clamped", stage] = scale_of(engine)
        bf16 = stage_flags(stage, folder, "--precision", "amp_bf16")
        engine = make_engine(bf16, world, set_scale(4.7))
        shown["bf16 begins", stage] = engine.checkpoint()
        shown["bf16", stage] = [step(engine, world, 0)[0]]
        shown["bf16 clamped", stage] = scale_of(engine)
        shown["bf16", stage] += [step(engine, world, 0)[0] for _ in range(9)]
        shown["bf16 spoilt", stage] = spoil_one_rank(engine, world)
        shown["bf16 checkpoint", stage] = engine.checkpoint()
    for stage, kind in (("1", "optimizer"), ("2", "optimizer"), ("3", "optimizer"), ("3", "param")):
        offload = stage_flags(
            stage, folder, "--zero-offload", kind, "--grad-clip-norm", "0.5", "--accum-freq", "2"
        )
        engine = make_engine(offload, world, lock_image)
        key = f"{stage}, {kind}"
        shown["offloaded", key] = [step_of_micro_batches(engine, world, n, 2) for n in range(3)]
        shown["offloaded spoilt", key] = spoil_one_rank(engine, world)
    shown["files", ""] = sorted(path.name for path in (folder / "empty").iterdir())
    return shown


def write(engine, folder, world):
    folder.mkdir(exist_ok=True)
    engine.snapshot(folder)()
    world.barrier()


def begin_and_discard(engine, world):
    """The weights' greatest change, and the next step's norm, which gradients kept would raise."""
    before = weights(engine)
    size = SAMPLES // world.size
    part = rows(global_batch(99), world.rank * size, (world.rank + 1) * size)
    encoded = engine.encode(part)
    engine.backward(1000 * objective(world)(encoded, part), last=False)
    engine.encode(part)  # a forward without its backward
    engine.discard()
    return change_of(before, weights(engine))


def spoil_one_rank(engine, world):
    """Whether the step was taken where rank 1's gradients have a NaN, and the weights' change."""

    def spoil(encoded):
        if world.rank == 1:
            encoded.text.register_hook(lambda gradient: gradient * float("nan"))

    before = weights(engine)
    _, stepped = step(engine, world, 98, spoil)
    return stepped.taken, change_of(before, weights(engine))


def change_of(before, after):
    return max(float((x - after[name]).abs().max()) for name, x in before.items())


def scale_of(engine):
    """The master's, the model's, and what the next forward multiplies by."""
    checkpoint = engine.checkpoint()
    part = rows(global_batch(0), 0, 2)
    with torch.no_grad():
        used = engine.encode(part).logit_scale.item()
    master = None if checkpoint is None else checkpoint["state_dict"]["logit_scale"].item()
    return master, weights(engine)["logit_scale"].item(), used


def go_on(folder, name, saved_world_size, written=None):
    """The losses of three more steps at each stage, after a restore of what another world wrote,
    and what is written then."""
    world, shown = this_world(), {}
    for stage in SHARED_OUT:
        engine = make_engine(stage_flags(stage, folder), world, set_scale(3.0))
        engine.restore(folder / f"{name} {stage}", saved_world_size, name)
        shown["restored", stage] = engine.checkpoint()
        shown["on", stage] = losses(engine, world, STEPS, 3)
        if written is not None:
            engine = make_engine(stage_flags(stage, folder), world, set_scale(3.0))
            engine.restore(folder / f"{name} {stage}", saved_world_size, name)
            write(engine, folder / f"{written} {stage}", world)
    return shown
