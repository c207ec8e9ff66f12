"""The parts of a run, made from its arguments."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from clipfast_kernels import backends, verify
from clipfast_kernels.dispatch import FROM_ENVIRONMENT, NAMES

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import Normalize
from clipfast.data.images.preprocess import Preprocess
from clipfast.data.loader import Caches, Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.encoder import Encoder
from clipfast.errors import UserError
from clipfast.models.factory import image_size
from clipfast.ranks.agreement import by_main, open_together
from clipfast.ranks.world import World
from clipfast.train import caches, model, objectives
from clipfast.train.checkpoints.resume import resume
from clipfast.train.checkpoints.run_folder import Position, RunFolder, default_name
from clipfast.train.engines.engine import Engine
from clipfast.train.engines.plain import PlainEngine
from clipfast.train.evaluation import Evaluator, make_evaluator
from clipfast.train.monitoring.kernels import describe_kernels
from clipfast.train.optim import optimizers
from clipfast.train.optim.ema import Ema
from clipfast.train.optim.schedules import Schedule, describe_schedule, make_schedule

logger = logging.getLogger("clipfast.train")


@dataclass
class Parts:
    """Attributes:
    told: lines of the start summary about what the engine then cuts and reshapes.
    ema: the average of the weights, where one is kept.
    evaluator: None where nothing is to be evaluated.
    start: what an earlier start of the run has done already.
    """

    args: argparse.Namespace
    world: World
    folder: RunFolder
    samples: SampleSet
    sampler: Sampler
    loader: Loader
    quarantine: Quarantine
    model: Any
    engine: Engine
    objective: objectives.Objective
    told: list[str]
    schedule: Schedule
    ema: Ema | None
    evaluator: Evaluator | None
    start: Position


def set_up(args: argparse.Namespace, world: World) -> Parts:
    """Makes the parts, and the run's folder; all that can be wrong with flags, data or checkpoint
    shows before that. Collective.

    Raises:
        UserError: a mistake in them, or the folder cannot be written.
    """
    _check_loss_backend(args, world.device)
    samples = _open_samples(args, world)
    evaluator = make_evaluator(args, world)
    if world.device.type == "cuda":
        verify(world.device, group=world.group)  # looked up, where this GPU was measured before
    torch.manual_seed(args.seed)
    net = model.make_model(args, world.device, world.group)
    pixels = model.preprocess(args)
    encoder = _encoder(args, net, world, pixels)
    offloads = args.zero_offload != "none"
    optimizer = optimizers.make_optimizer(
        args, net, torch.device("cpu") if offloads else world.device
    )
    told = [
        *model.describe(args, net, world.device),
        *optimizers.describe_optimizer(args, optimizer),
    ]
    engine = make_engine(args, net, encoder, world, optimizer)
    torch.manual_seed(args.seed + world.rank)
    sampler = make_sampler(args, samples, world)
    args.name = world.from_main(args.name or default_name(args))
    folder = by_main(world, lambda: _run_folder(args))
    resumed = resume(args, folder, world, engine, sampler, samples)
    ema = None if args.ema_decay is None else Ema(net, args.ema_decay)
    if ema is not None and "ema" in resumed.content:
        ema.load_state_dict(resumed.content["ema"], str(resumed.source))
    with engine.whole_model():  # their key is made of the weights
        kept = caches.open_caches(args, net, samples, precision=encoder.precision)
    encoder.use(kept)
    objective = objectives.make_objective(args, net, world, world.device)
    by_main(world, lambda: folder.create(args))
    quarantine = Quarantine(folder.quarantine_of(world.rank), args.max_unusable, _tell)
    return Parts(
        args=args,
        world=world,
        folder=folder,
        samples=samples,
        sampler=resumed.sampler,
        loader=_loader(args, world, samples, resumed.sampler, quarantine, net, pixels, kept),
        quarantine=quarantine,
        model=net,
        engine=engine,
        objective=objective,
        told=told,
        schedule=make_schedule(args, resumed.sampler.steps_per_epoch),
        ema=ema,
        evaluator=evaluator,
        start=resumed.position,
    )


def make_sampler(args: argparse.Namespace, samples: SampleSet, world: World) -> Sampler:
    """The order of a run that starts afresh, and this rank's part of it."""
    return Sampler.of(
        samples.shards,
        args.batch_size * world.size,
        args.workers,
        args.seed,
        args.train_num_samples,
        rank=world.rank,
        world_size=world.size,
        micro_batches=args.accum_freq,
    )


def make_engine(
    args: argparse.Namespace,
    net: Any,
    encoder: Encoder,
    world: World,
    optimizer: torch.optim.Optimizer,
) -> Engine:
    """DeepSpeed's where a ZeRO stage is asked for, else the plain one."""
    if args.zero_stage is not None:
        from clipfast.train.engines.deepspeed.engine import make_deepspeed_engine

        return make_deepspeed_engine(args, net, encoder, world, lambda _: optimizer)
    scaler = torch.amp.GradScaler(world.device.type) if encoder.precision == "amp" else None
    return PlainEngine(
        net,
        optimizer,
        encoder,
        world,
        max_norm=args.grad_clip_norm,
        scaler=scaler,
        static_graph=args.ddp_static_graph,
    )


def describe(parts: Parts) -> Iterator[str]:
    """Lines of the start summary, ``name: value``."""
    args, world, sampler = parts.args, parts.world, parts.sampler
    yield f"run: {parts.folder.path}"
    yield from parts.told
    yield from parts.samples.describe()
    yield f"decoder: {parts.loader.decoder.name}, {args.workers} threads a process"
    yield from caches.describe(parts.loader.caches)
    ways = [(world.size, "processes"), (args.accum_freq, "micro-batches")]
    product = "".join(f" × {count} {what}" for count, what in ways if count > 1)
    yield (
        f"steps: {args.epochs} epochs of {sampler.steps_per_epoch:,} steps of {args.batch_size}"
        f"{product}{f' = {sampler.order.batch_size:,}' if product else ''} samples"
    )
    yield f"engine: {parts.engine.name}"
    yield describe_schedule(args)
    yield from objectives.describe(args, world)
    yield from describe_kernels(
        parts.model,
        world.device,
        precision=model.computed_precision(args, world.device),
        loss=_loss_op(args),
        loss_backend=args.backend,
    )
    if parts.evaluator is not None:
        yield from parts.evaluator.describe()
    if parts.start != (0, 0):
        yield f"resuming: epoch {parts.start.epoch}, step {parts.start.step}"


def warnings_of(parts: Parts) -> Iterator[str]:
    """Lines of the log: what may be unexpected."""
    yield from model.warnings_of(parts.args, parts.world.device)
    yield from optimizers.warnings_of(parts.args)


def _run_folder(args: argparse.Namespace) -> RunFolder:
    return RunFolder(args.logs, args.name, resume=args.resume == "latest")


def _open_samples(args: argparse.Namespace, world: World) -> SampleSet:
    def opening() -> SampleSet:
        return open_samples(
            args,
            args.train_data,
            factors=args.train_data_upsampling_factors,
            resampled=args.dataset_resampled,
            epoch_samples=args.train_num_samples,
        )

    return open_together(world, "--train-data", opening)


def _encoder(args: argparse.Namespace, net: Any, world: World, pixels: Preprocess) -> Encoder:
    return Encoder(
        net,
        precision=model.forward_precision(args, world.device),
        normalize=Normalize(pixels.mean, pixels.std, world.device),
        device=world.device,
        compiled=args.torchcompile,
    )


def _loader(
    args: argparse.Namespace,
    world: World,
    samples: SampleSet,
    sampler: Sampler,
    quarantine: Quarantine,
    net: Any,
    pixels: Preprocess,
    kept: Caches,
) -> Loader:
    size = image_size(net)
    decoder = choose_decoder(
        args.decoder,
        size=size,
        augmentation=Augmentation.of(args.aug_cfg, pixels.interpolation),
        view=pixels.view,
        device=world.device,
        threads=max(1, args.workers),
        fast_jpeg=args.fast_jpeg,
        max_batch=args.batch_size * args.accum_freq,
    )
    return Loader(
        samples,
        sampler,
        decoder=decoder,
        image_size=size,
        read_caption=CaptionReader(args.caption_key),
        tokenize=tokenizer_for(net),
        # Where each image has one set of features, whatever the epoch, it is shown in one way.
        augment=kept.image is None,
        workers=args.workers,
        quarantine=quarantine,
        caches=kept,
    )


def _loss_op(args: argparse.Namespace) -> str:
    return "sigmoid_loss" if args.siglip else "contrastive_loss"


def _check_loss_backend(args: argparse.Namespace, device: torch.device) -> None:
    """Raises:
    UserError: the loss cannot take the backend that is asked for.
    """
    features, asked = torch.empty(1, 1, device=device), args.backend
    reasons, auto = backends(_loss_op(args), features, features)
    if asked == "auto" and auto is None:
        # Only the environment can make it fail: plain torch always serves.
        wanted = FROM_ENVIRONMENT
        why = "; ".join(reasons.get(wanted, [f"expected one of {', '.join(NAMES)}"]))
        raise UserError(f"CLIPFAST_BACKEND={wanted}: {why}")
    if asked == "auto":
        return
    if asked not in reasons:
        raise UserError(f"--backend: expected one of auto, {', '.join(reasons)}; got {asked!r}")
    if reasons[asked]:
        raise UserError(f"--backend {asked}: {'; '.join(reasons[asked])}")


def _tell(fault: Fault) -> None:
    place, reason = fault
    logger.warning(f"{place.key} in {place.shard}: {reason}; listed in quarantine.jsonl")
