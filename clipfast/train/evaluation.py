"""Evaluation during training, as open_clip evaluates: retrieval and loss on pairs, zero-shot
classification of labelled images. All ranks share the work, and have the same results whatever
their number.

N pairs or images of all ranks, D features, C classes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.data.sources.opening import open_samples
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.text.captions import CaptionReader
from clipfast.errors import UserError
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.datasets.imagenet import open_imagenet, open_imagenet_v2
from clipfast.eval.datasets.sets import LabelledImages
from clipfast.eval.extract import Data, Extractor, Settings
from clipfast.eval.retrieval import batchwise_loss, retrieval_metrics
from clipfast.eval.standing import standing_of
from clipfast.models.locking import rest_locked_towers
from clipfast.ranks.agreement import by_all, check_same_samples, open_together
from clipfast.ranks.world import World
from clipfast.train.flags.evaluation import only_evaluates
from clipfast.train.model import forward_precision, preprocess

# Flag, prefix of the metrics, and what opens the folder.
_LABELLED: tuple[tuple[str, str, Callable[[Path], LabelledImages]], ...] = (
    ("--imagenet-val", "imagenet-zeroshot-val", open_imagenet),
    ("--imagenet-v2", "imagenetv2-zeroshot-val", open_imagenet_v2),
    ("--zeroshot-data", "zeroshot-val", open_class_folder),
)


class _Labelled(NamedTuple):
    """Attributes:
    prefix: of the metrics' names.
    """

    data: Data
    prefix: str
    images: LabelledImages


def make_evaluator(args: argparse.Namespace, world: World) -> Evaluator | None:
    """Opens the data that the flags name; None where they name none. Collective.

    Raises:
        UserError: data that is missing, or is not what its flag expects.
    """
    pairs, labelled = None, []
    if args.val_data and (args.val_frequency or only_evaluates(args)):
        samples = open_together(world, "--val-data", lambda: _open_pairs(args))
        pairs = Data.of("--val-data", samples)
    if args.zeroshot_frequency or only_evaluates(args):
        for flag, prefix, opening in _LABELLED:
            folder = getattr(args, flag[2:].replace("-", "_"))
            if folder:
                images = by_all(world, partial(_open_labelled, flag, folder, opening))
                check_same_samples(world, flag, images.samples.fingerprint)
                labelled.append(_Labelled(Data.of(flag, images.samples), prefix, images))
    if pairs is None and not labelled:
        return None
    return Evaluator(args, world, pairs, labelled)


def write_results(metrics: dict[str, float], checkpoints: Path) -> None:
    """Appends a line to open_clip's ``checkpoints/results.jsonl``."""
    with open(checkpoints / "results.jsonl", "a") as file:
        file.write(json.dumps(metrics) + "\n")


class Evaluator:
    """Metrics of a model, under open_clip's names.

    A sample that cannot be used is left out, counted and told once.

    Args:
        args: the run's.
        pairs: of ``--val-data``.
        labelled: images for zero-shot classification.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        world: World,
        pairs: Data | None,
        labelled: list[_Labelled],
    ) -> None:
        self.args, self.world, self.pairs, self.labelled = args, world, pairs, labelled
        self.precision, self.pixels = forward_precision(args, world.device), preprocess(args)

    def due(self, epochs_done: int) -> bool:
        """Whether a call after so many epochs would measure anything."""
        return self._pairs_due(epochs_done) or self._labelled_due(epochs_done)

    def describe(self) -> Iterator[str]:
        """Lines of the log."""
        args = self.args
        if self.pairs is not None:
            yield from self._describe(self.pairs, args.val_frequency, "retrieval and loss")
            count = len(self.pairs.samples)
            if args.val_num_samples not in (None, count):
                yield (
                    f"evaluation: all of --val-data, {count:,} pairs, as in open_clip, though "
                    f"--val-num-samples says {args.val_num_samples:,}"
                )
        for data, _, images in self.labelled:
            what = f"zero-shot among {len(images.classes):,} classes"
            yield from self._describe(data, args.zeroshot_frequency, what)

    @torch.no_grad()
    def __call__(self, model: Any, epochs_done: int) -> dict[str, float]:
        """Evaluates what is due, in eval mode. Collective.

        Args:
            model: the bare model, with all its weights; its mode is put back.
            epochs_done: of training.

        Returns:
            The same on every rank.

        Raises:
            UserError: on every rank alike: data that cannot be read any more, or of which nothing
                can be used.
        """
        was_training = model.training
        model.eval()
        try:
            metrics = self._metrics(model, epochs_done)
        finally:
            if was_training:
                model.train()
                rest_locked_towers(model)
        return metrics | {"epoch": epochs_done}

    def _pairs_due(self, epochs_done: int) -> bool:
        return self.pairs is not None and self._is_due(epochs_done, self.args.val_frequency)

    def _labelled_due(self, epochs_done: int) -> bool:
        return bool(self.labelled) and self._is_due(epochs_done, self.args.zeroshot_frequency)

    def _is_due(self, epochs_done: int, frequency: int) -> bool:
        if only_evaluates(self.args):
            return True
        return bool(frequency) and (epochs_done % frequency == 0 or epochs_done == self.args.epochs)

    def _metrics(self, model: Any, epochs_done: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        extractor = self._extractor(model)
        if self._labelled_due(epochs_done):
            classifiers = dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor]()
            for labelled in self.labelled:
                classes, templates = labelled.images.classes, labelled.images.templates
                if (classes, templates) not in classifiers:
                    classifiers[classes, templates] = extractor.classifier(classes, templates)
                metrics |= self._accuracies(extractor, labelled, classifiers[classes, templates])
        if self.pairs is not None and self._pairs_due(epochs_done):
            metrics |= self._retrieval(extractor, self.pairs)
        return metrics

    def _retrieval(self, extractor: Extractor, pairs: Data) -> dict[str, float]:
        """Of all pairs, and their mean loss in batches of ``--batch-size``."""
        image_ND, text_ND = extractor.pairs(pairs, CaptionReader(self.args.caption_key))
        scale = extractor.model.logit_scale.float().exp().reshape(())
        return {
            **retrieval_metrics(image_ND, text_ND, self.world.group),
            "clip_val_loss": batchwise_loss(image_ND, text_ND, scale, self.args.batch_size),
            "num_samples": len(image_ND),
        }

    def _accuracies(
        self, extractor: Extractor, labelled: _Labelled, classifier_DC: Tensor
    ) -> dict[str, float]:
        """The shares of images whose class is the most similar one, or among the first five."""
        found = extractor.images(labelled.data)
        labels = torch.from_numpy(labelled.images.labels[found.numbers])
        image_ND = extractor.projected(found.penultimate)
        standing = standing_of(image_ND, classifier_DC.T, labels.to(self.world.device))
        return {f"{labelled.prefix}-top{k}": standing.recall(k) for k in (1, 5)}

    def _extractor(self, model: Any) -> Extractor:
        args = self.args
        settings = Settings(
            self.precision, self.pixels, args.workers, args.batch_size, args.decoder
        )
        return Extractor(model, self.world, settings)

    def _describe(self, data: Data, frequency: int, what: str) -> Iterator[str]:
        often = "every epoch" if frequency == 1 else f"every {frequency} epochs and after the last"
        often = "once" if only_evaluates(self.args) else often
        sources = ", ".join(source.name for source in data.samples.sources)
        yield f"evaluation: {what}, {len(data.samples):,} samples in {sources}, {often}"
        faults = list(data.samples.faults())
        if faults:
            place, reason = faults[0]
            yield (
                f"evaluation: {len(faults):,} entries of {data.name} cannot be used, first "
                f"{place.key} in {place.shard}: {reason}"
            )


def _open_pairs(args: argparse.Namespace) -> SampleSet:
    return open_samples(
        args, args.val_data, flag="--val-data", epoch_samples=args.train_num_samples
    )


def _open_labelled(
    flag: str, folder: str, opening: Callable[[Path], LabelledImages]
) -> LabelledImages:
    try:
        return opening(Path(folder))
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
