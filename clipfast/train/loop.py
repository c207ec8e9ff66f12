"""The training run, from arguments to weights."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import threading
from types import FrameType
from typing import Any, NamedTuple

import torch
from clipfast_kernels import backends, contrastive_loss
from clipfast_kernels.dispatch import FROM_ENVIRONMENT, NAMES
from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.data.device_prefetch import prefetch
from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import Normalize
from clipfast.data.loader import Caches, Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.errors import UserError
from clipfast.models.factory import image_size
from clipfast.models.locking import rest_locked_towers
from clipfast.train.caches import describe as describe_caches
from clipfast.train.caches import open_caches
from clipfast.train.engine import PlainEngine
from clipfast.train.features import Encoder
from clipfast.train.model import computed_precision, describe, make_model, warnings_of
from clipfast.train.monitor import Monitor, StepRecord, Stopwatch
from clipfast.train.optimizer import adamw, learning_rate
from clipfast.train.resume import order_state, resume
from clipfast.train.run_folder import Position, RunFolder, default_name

logger = logging.getLogger("clipfast.train")

_MAX_SKIPPED_IN_A_ROW = 10


class Summary(NamedTuple):
    """What a run leaves to its caller.

    Attributes:
        model: trained, in eval mode: a `clipfast.models.clip.TwoTowers`, or open_clip's own.
        folder: the run's files.
        losses: one per step taken in this call.
        samples_per_second: over those steps, waiting for data included.
        rejected: how many samples were replaced because they could not be used.
    """

    model: Any
    folder: RunFolder
    losses: list[float]
    samples_per_second: float
    rejected: int


class Interrupted(Exception):
    """The run was asked to stop; its state is saved.

    Attributes:
        signal_number: the signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def train(args: argparse.Namespace) -> Summary:
    """Trains as the flags say.

    Args:
        args: what `parse_args` returned.

    Raises:
        UserError: a mistake in flags or data, or a loss that stays non-finite.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        OSError: a file cannot be written.
    """
    device = _device(args)
    loss_backend = _loss_backend(args.backend, device)
    samples = open_samples(
        args,
        args.train_data,
        factors=args.train_data_upsampling_factors,
        resampled=args.dataset_resampled,
        epoch_samples=args.train_num_samples,
    )
    torch.manual_seed(args.seed)
    model = make_model(args, device)
    precision = computed_precision(args, device)
    optimizer = adamw(
        model, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, weight_decay=args.wd
    )
    scaler = torch.amp.GradScaler(device.type) if precision == "amp" else None
    engine = PlainEngine(model, optimizer, args.grad_clip_norm, scaler)
    sampler = Sampler.of(
        samples.shards, args.batch_size, args.workers, args.seed, args.train_num_samples
    )
    args.name = args.name or default_name(args)
    folder = RunFolder(args.logs, args.name, resume=args.resume == "latest")
    start, sampler = resume(args.resume, folder, engine, sampler, samples)
    caches = open_caches(args, model, samples, precision=precision)
    folder.create(args)
    with Monitor(
        log=folder.log,
        tensorboard=folder.tensorboard if args.report_to else None,
        batch_size=args.batch_size,
        steps_per_epoch=sampler.steps_per_epoch,
        epochs=args.epochs,
        samples=len(samples),
        log_every=args.log_every_n_steps,
    ) as monitor:
        run = _Run(args, engine, samples, sampler, folder, monitor, device, caches)
        run.announce(start, loss_backend)
        run.go(start)
    return Summary(
        model.eval(), folder, monitor.losses, monitor.samples_per_second, run.quarantine.replaced
    )


def _device(args: argparse.Namespace) -> torch.device:
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device(args.device)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: expected cpu or cuda; got {args.device!r}")
    return device


def _loss_backend(asked: str, device: torch.device) -> str:
    """The backend that the loss will take, or a sentence before anything is written."""
    features = torch.empty(1, 1, device=device)
    reasons, auto = backends("contrastive_loss", features, features)
    if asked == "auto" and auto is not None:
        return auto
    if asked == "auto":  # only the environment can make it fail: plain torch always serves
        wanted = FROM_ENVIRONMENT
        why = "; ".join(reasons.get(wanted, [f"expected one of {', '.join(NAMES)}"]))
        raise UserError(f"CLIPFAST_BACKEND={wanted}: {why}")
    if asked not in reasons:
        raise UserError(f"--backend: expected one of auto, {', '.join(reasons)}; got {asked!r}")
    if reasons[asked]:
        raise UserError(f"--backend {asked}: {'; '.join(reasons[asked])}")
    return asked


class _Run:
    """One call of `train`: its parts, and the loop over them."""

    def __init__(
        self,
        args: argparse.Namespace,
        engine: PlainEngine,
        samples: SampleSet,
        sampler: Sampler,
        folder: RunFolder,
        monitor: Monitor,
        device: torch.device,
        caches: Caches,
    ) -> None:
        self.args, self.engine, self.samples, self.sampler = args, engine, samples, sampler
        self.folder, self.monitor, self.device, self.caches = folder, monitor, device, caches
        self.model = engine.model
        self.encoder = Encoder(
            self.model,
            precision=computed_precision(args, device),
            normalize=Normalize(args.image_mean, args.image_std, device),
            device=device,
            caches=caches,
            compiled=args.torchcompile,
        )
        self.buffers = list(self.model.buffers())
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.skipped_in_a_row = 0
        self.stop = _StopSignal()
        self.quarantine = Quarantine(folder.quarantine, args.max_unusable, _tell)
        self.loader = self._loader()

    def _loader(self) -> Loader:
        args, size = self.args, image_size(self.model)
        decoder = choose_decoder(
            args.decoder,
            size=size,
            augmentation=Augmentation.of(args.aug_cfg),
            device=self.device,
            threads=max(1, args.workers),
            fast_jpeg=args.fast_jpeg,
            max_batch=args.batch_size,
        )
        return Loader(
            self.samples,
            self.sampler,
            decoder=decoder,
            image_size=size,
            read_caption=CaptionReader(args.caption_key),
            tokenize=tokenizer_for(self.model),
            # Where each image has one set of features, whatever the epoch, it is shown in one way.
            augment=self.caches.image is None,
            workers=args.workers,
            quarantine=self.quarantine,
            caches=self.caches,
        )

    def announce(self, start: Position, loss_backend: str) -> None:
        """Says at the start what will run on what."""
        args, sampler = self.args, self.sampler
        for line in warnings_of(args, self.device):
            logger.warning(line)
        logger.info(f"run: {self.folder.path}")
        for line in describe(args, self.model, self.device):
            logger.info(line)
        for line in (*describe_caches(self.caches), *self.samples.describe()):
            logger.info(line)
        for fault in self.samples.faults():
            self.quarantine.found(fault)
        logger.info(f"decoder: {self.loader.decoder.name}, {args.workers} threads")
        logger.info(
            f"steps: {args.epochs} epochs of {sampler.steps_per_epoch} steps of {args.batch_size}"
        )
        logger.info(f"loss: contrastive_loss, backend {loss_backend}")
        if start != (0, 0):
            logger.info(f"resuming: epoch {start.epoch}, step {start.step}")

    def go(self, start: Position) -> None:
        self.model.train()
        rest_locked_towers(self.model)  # open_clip's own models do not do so themselves
        first_step = start.step
        with self.stop:
            for epoch in range(start.epoch, self.args.epochs):
                clock = Stopwatch()
                batches = prefetch(self.loader.epoch(epoch, first_step), self.device)
                for step, batch in enumerate(batches, first_step):
                    self._step(epoch, step, batch, data_time=clock.lap(), clock=clock)
                    self._after_step(Position(epoch, step + 1))
                    clock.lap()
                first_step = 0
                self._after_epoch(epoch + 1)
        if self.skipped_in_a_row:
            raise UserError(
                f"the last {self.skipped_in_a_row} steps had no finite loss; expected one; stopped "
                f"without saving, the last checkpoint in {self.folder.path} stands"
            )
        count = self.quarantine.replaced
        replaced = f"unusable samples replaced: {count}, listed in quarantine.jsonl"
        logger.info(f"done: {self.args.epochs} epochs; {replaced if count else 'no faults'}")

    def _step(
        self, epoch: int, step: int, batch: Batch, *, data_time: float, clock: Stopwatch
    ) -> None:
        global_step = epoch * self.sampler.steps_per_epoch + step
        lr = self._learning_rate(global_step)
        _copy(self.buffers, to=self.buffers_before)
        image, text = self.encoder.image(batch), self.encoder.text(batch)
        logit_scale = self.model.logit_scale.float().exp()
        loss = contrastive_loss(image, text, logit_scale, backend=self.args.backend)
        if not math.isfinite(loss.item()):
            self._skip(global_step, loss, image, text)
            return
        self.skipped_in_a_row = 0
        self.engine.backward(loss)
        self.engine.step(lr)
        record = StepRecord(loss.item(), logit_scale.item(), lr, data_time, data_time + clock.lap())
        self.monitor.step(epoch, step, record)

    def _learning_rate(self, global_step: int) -> float:
        args = self.args
        if args.skip_scheduler:
            return args.lr
        return learning_rate(
            global_step,
            base=args.lr,
            warmup=args.warmup,
            total=args.epochs * self.sampler.steps_per_epoch,
            decay=args.lr_scheduler == "cosine",
        )

    def _skip(self, global_step: int, loss: Tensor, image: Tensor, text: Tensor) -> None:
        """Leaves weights and BatchNorm's statistics as they were; too often in a row is an end."""
        _copy(self.buffers_before, to=self.buffers)
        bad = {n: int((~x.isfinite()).any(1).sum()) for n, x in (("image", image), ("text", text))}
        what = (
            f"step {global_step}: loss is {loss.item()}; of {len(image)} samples, features are not "
            f"finite for {bad['image']} images and {bad['text']} texts"
        )
        self.skipped_in_a_row += 1
        logger.warning(f"{what}; step skipped")
        if self.skipped_in_a_row == _MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{what}; expected a finite loss, got {_MAX_SKIPPED_IN_A_ROW} that are not in a "
                f"row; stopped, the last checkpoint in {self.folder.path} stands"
            )

    def _after_step(self, done: Position) -> None:
        global_step = done.epoch * self.sampler.steps_per_epoch + done.step
        every = self.args.save_every_steps
        if self.stop.requested or (every and global_step % every == 0):
            self._save_state(global_step, done)
        if self.stop.requested:
            raise Interrupted(
                f"stopped after step {global_step}, as asked; go on with "
                f"--name {self.args.name} --resume latest",
                self.stop.requested,
            )

    def _save_state(self, global_step: int, done: Position) -> None:
        if self.skipped_in_a_row:
            return  # what makes losses infinite may be in the weights
        order = order_state(self.sampler, self.samples)
        content = self.engine.state_dict() | {"order": order, "torch_rng": torch.get_rng_state()}
        self.folder.save_state(global_step, done, content)

    def _after_epoch(self, epochs_done: int) -> None:
        args = self.args
        if self.skipped_in_a_row:
            return
        often = args.save_frequency and epochs_done % args.save_frequency == 0
        if often or epochs_done == args.epochs:
            self.folder.save_epoch(epochs_done, self.engine.state_dict(), f"epoch_{epochs_done}.pt")
        if args.save_most_recent:
            self.folder.save_epoch(epochs_done, self.engine.state_dict(), "epoch_latest.pt")


def _tell(fault: Fault) -> None:
    place, reason = fault
    logger.warning(f"{place.key} in {place.shard}: {reason}; listed in quarantine.jsonl")


def _copy(tensors: list[Tensor], *, to: list[Tensor]) -> None:
    for source, target in zip(tensors, to, strict=True):
        target.copy_(source)


class _StopSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours between two steps;
    a second one ends the process as usual."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = 0  # the signal's number
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {s: signal.signal(s, self._request) for s in self._SIGNALS}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
