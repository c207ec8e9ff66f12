"""An accelerated model trains as before under DDP, FSDP and DeepSpeed's ZeRO, on two gloo ranks."""

import os

import open_clip
import pytest
import torch
import torch.distributed as dist
from models_of_others import TEXT, VIT, images, token_ids
from ranks import run_ranks
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from clipfast import ClipLoss, accelerate

STEPS = 3


def losses(engine, accelerated):
    """Of a few steps, each rank on its half of the batch; and the tokens' dimensions."""
    torch.manual_seed(0)
    # DeepSpeed cannot broadcast parameters without a dimension.
    model = open_clip.CLIP(64, dict(VIT), dict(TEXT), nonscalar_logit_scale=True)
    if accelerated:
        accelerate(model, verbose=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = ClipLoss(rank=dist.get_rank(), world_size=2)
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    ranks, norm = [], model.transformer.resblocks[0].ln_1
    forward, backward, step = ENGINES[engine](model, optimizer)
    norm_forward = norm.forward
    norm.forward = lambda x: ranks.append(x.ndim) or norm_forward(x)
    found = []
    for _ in range(STEPS):
        image, text, scale = forward(images()[mine], token_ids()[mine])
        loss = loss_of(image, text, scale)
        backward(loss)
        step()
        found.append(loss.item())
    return found, set(ranks)


def plain_steps(model, optimizer):
    def step():
        optimizer.step()
        optimizer.zero_grad()

    return model, lambda loss: loss.backward(), step


def ddp(model, optimizer):
    return plain_steps(DistributedDataParallel(model), optimizer)


def fsdp(model, _):
    for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
        fully_shard(block)
    fully_shard(model)
    return plain_steps(model, torch.optim.AdamW(model.parameters(), lr=1e-3))


def zero(stage):
    def engine_of(model, optimizer):
        os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(dist.get_rank()))
        os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE="2")
        import deepspeed

        # Its all-reduce on a CPU takes minutes to compile; gloo's serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return engine, engine.backward, engine.step

    return engine_of


ENGINES = {"ddp": ddp, "fsdp": fsdp, "zero-1": zero(1), "zero-2": zero(2), "zero-3": zero(3)}


def both(engine):
    return losses(engine, False), losses(engine, True)


def slow(engine):
    return pytest.param(engine, marks=pytest.mark.slow)


@pytest.mark.parametrize("engine", ["ddp", "fsdp", "zero-3", slow("zero-1"), slow("zero-2")])
def test_losses_follow_the_unaccelerated_models_and_text_stays_packed(engine):
    for (theirs, padded), (ours, packed) in run_ranks(2, both, engine):
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert (padded, packed) == ({3}, {2})  # (B, L, W) and (T, W)
