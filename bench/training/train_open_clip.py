"""open_clip_train 3.3.0 as its users start it, or fed with the batches of clipfast's trainer.

``python -m clipfast_bench.training.train_open_clip FLAGS`` is
``python -m open_clip_train.main FLAGS``, but --model may be the path of a .json file. With
``--our-batches`` before FLAGS, its model is shown the samples that clipfast's trainer takes under
the same flags, in the same order and with the same augmentation: then the two losses can be
compared step by step.

B samples, S the model's image size, L the context length.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip_train import main as trainer
from open_clip_train.data import DataInfo
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import Normalize
from clipfast.data.loader import Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.opening import open_samples
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.models.factory import create_model, image_size
from clipfast.packed_text import PackedText, pad_packed
from clipfast.train import parse_args

_OURS = "--our-batches"


def train_open_clip(flags: Sequence[str], *, our_batches: bool = False) -> None:
    """Runs open_clip's trainer in this process.

    Args:
        flags: that both trainers have; --model may be the path of a .json file.
        our_batches: as clipfast's trainer would take them, in place of those of its own pipeline.
    """
    flags = list(flags)
    at = flags.index("--model") + 1
    if flags[at].endswith(".json"):
        open_clip.add_model_config(Path(flags[at]))
        flags[at] = Path(flags[at]).stem
    with _logging_as_it_was():
        if not our_batches:
            trainer.main(flags)
            return
        with TemporaryDirectory() as folder, _data_of(OurBatches(parse_args(flags), Path(folder))):
            trainer.main(flags)


class OurBatches:
    """A loader in open_clip's form: iterating gives (images, ids) of one epoch.

    Images are (B, 3, S, S) float32, normalised; ids (B, L) int64. With --accum-freq K, a step of
    ours is K of these.

    Args:
        args: of `parse_args`, for one process.
        folder: for the list of faults.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        model = create_model(args.model)
        samples = open_samples(args, args.train_data, epoch_samples=args.train_num_samples)
        sampler = Sampler.of(
            samples.shards,
            args.batch_size,
            args.workers,
            args.seed,
            args.train_num_samples,
            micro_batches=args.accum_freq,
        )
        decoder = choose_decoder(
            args.decoder,
            size=image_size(model),
            augmentation=Augmentation.of(args.aug_cfg),
            device=torch.device("cpu"),
            threads=1,
            max_batch=args.batch_size,
        )
        self.loader = Loader(
            samples,
            sampler,
            decoder=decoder,
            image_size=image_size(model),
            read_caption=CaptionReader(args.caption_key),
            tokenize=tokenizer_for(model),
            augment=True,
            workers=1,
            quarantine=Quarantine(folder / "faults.jsonl", args.max_unusable, lambda _: None),
        )
        self.normalize = Normalize(args.image_mean, args.image_std)
        self.context_length, self.accum_freq = model.context_length, args.accum_freq
        self.num_batches = sampler.steps_per_epoch * args.accum_freq
        self.num_samples = self.num_batches * args.batch_size
        self.set_value(0)

    def set_value(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in self.loader.epoch(self.epoch):
            for batch in step.split(self.accum_freq):
                text = batch.text
                if isinstance(text, PackedText):
                    text = pad_packed(text, self.context_length)
                yield self.normalize(batch.images), text


@contextmanager
def _data_of(batches: OurBatches) -> Iterator[None]:
    """Lets open_clip's trainer find them where it looks for its own training data."""
    original = trainer.get_data

    def get_data(args: argparse.Namespace, *rest: Any, **options: Any) -> dict[str, DataInfo]:
        evaluation = argparse.Namespace(**vars(args) | {"train_data": None})
        data = original(evaluation, *rest, **options)
        return data | {"train": DataInfo(batches, shared_epoch=batches)}

    trainer.get_data = get_data
    try:
        yield
    finally:
        trainer.get_data = original


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Takes back what each of its runs leaves: handlers, to which the next run would write too, and
    the level of every logger that there is."""
    root = logging.root
    loggers = [root, *map(logging.getLogger, list(root.manager.loggerDict))]
    levels, handlers = [logger.level for logger in loggers], list(root.handlers)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
            handler.close()


if __name__ == "__main__":
    words = sys.argv[1:]
    train_open_clip([word for word in words if word != _OURS], our_batches=_OURS in words)
