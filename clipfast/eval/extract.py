"""From samples and sentences to features: one way for all evaluations, by all ranks, and kept on
disk where that is asked for.

N images, T texts, C classes, W penultimate features, D features of the shared space.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.data.device_prefetch import prefetch
from clipfast.data.feature_cache import FeatureCache
from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder
from clipfast.data.images.normalize import Normalize
from clipfast.data.images.preprocess import Preprocess
from clipfast.data.in_order import InOrder
from clipfast.data.loader import Caches, Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, UnusableError
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.encoder import Encoder
from clipfast.eval.batch_size import fastest_batch_size
from clipfast.eval.progress import progress_bar
from clipfast.eval.sentences import encode_sentences
from clipfast.eval.zero_shot import zero_shot_classifier
from clipfast.models.factory import image_size
from clipfast.models.precision import autocast
from clipfast.models.tower_keys import image_key, text_key
from clipfast.ranks.agreement import all_rows, by_all, refuse
from clipfast.ranks.world import World

logger = logging.getLogger("clipfast.eval")

_TOLD = 20  # faults of one pass, each in a line of its own
_SENTENCES = 4096  # of a rank's turn
_PROJECTED = 8192  # features at once


class Data(NamedTuple):
    """Samples to evaluate on, and what of them cannot be used.

    Attributes:
        name: what the user calls them.
        left_out: collects faults that were not told yet.
    """

    name: str
    samples: SampleSet
    left_out: list[Fault]
    quarantine: Quarantine

    @classmethod
    def of(cls, name: str, samples: SampleSet) -> Data:
        left_out = list[Fault]()
        return cls(name, samples, left_out, Quarantine(None, 1.0, left_out.append))


class ImageFeatures(NamedTuple):
    """Attributes:
    penultimate: (N, W) float32.
    numbers: (N,) int64, the samples that these are; what cannot be used is not among them.
    """

    penultimate: Tensor
    numbers: NDArray[np.int64]


class CaptionedFeatures(NamedTuple):
    """Attributes:
    image: (N, D) of unit length, of images that have a text.
    text: (T, D) of unit length.
    image_of_text: (T,) int64.
    numbers: (N,) int64, the images' samples.
    texts: the T captions.
    """

    image: Tensor
    text: Tensor
    image_of_text: Tensor
    numbers: NDArray[np.int64]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """How features are made.

    Attributes:
        precision: open_clip's name.
        preprocess: how images are shown.
        workers: threads that decode.
        batch_size: None finds the fastest.
        decoder: see `choose_decoder`.
        cache: a folder that keeps features; None keeps none.
    """

    precision: str
    preprocess: Preprocess
    workers: int
    batch_size: int | None = None
    decoder: str = "native"
    cache: Path | None = None


class Extractor:
    """Features of a model in eval mode. All ranks share the work, and all have all of it, in the
    order of the data, whatever their number. Its methods are collective.

    Args:
        model: ours or open_clip's, on the ranks' devices.
        world: the ranks.
        settings: how.
    """

    def __init__(self, model: Any, world: World, settings: Settings) -> None:
        self.model, self.world, self.settings = model, world, settings
        look, device = settings.preprocess, world.device
        self.encoder = Encoder(
            model,
            precision=settings.precision,
            normalize=Normalize(look.mean, look.std, device),
            device=device,
            compiled=False,
        )
        self._batch_size = settings.batch_size

    def images(self, data: Data) -> ImageFeatures:
        """Of all samples that can be used.

        Raises:
            UserError: there is none, or the data cannot be read.
        """
        features = self._images(data)
        self._tell_left_out(data, len(features.numbers))
        return features

    def projected(self, penultimate_NW: Tensor) -> Tensor:
        """(N, D) of unit length."""
        with torch.no_grad():
            parts = penultimate_NW.split(_PROJECTED)
            return torch.cat([F.normalize(self.encoder.projected(x), dim=1) for x in parts])

    def pairs(self, data: Data, read_caption: CaptionReader) -> tuple[Tensor, Tensor]:
        """(N, D) of images and (N, D) of the first caption of each, of unit length, in one pass.

        Raises:
            UserError: as `images`.
        """
        texts = list[Tensor]()

        def encode(batch: Batch) -> Tensor:
            texts.append(F.normalize(self.encoder.text(batch).float(), dim=1))
            return F.normalize(self.encoder.image(batch).float(), dim=1)

        image_ND = all_rows(self.world, self._pass(data, read_caption, encode, texts.clear))
        text_ND = all_rows(self.world, texts)
        self._tell_left_out(data, len(image_ND))
        return image_ND, text_ND

    def captioned(self, data: Data, read_caption: CaptionReader) -> CaptionedFeatures:
        """Of images and of all captions of each.

        Raises:
            UserError: as `images`.
        """
        captions, numbers_T = self._captions(data, read_caption)
        penultimate, numbers_N = self._images(data)
        numbers = np.intersect1d(numbers_N, numbers_T)
        self._tell_left_out(data, len(numbers))
        kept_T = np.isin(numbers_T, numbers)
        texts = [text for text, kept in zip(captions, kept_T.tolist(), strict=True) if kept]
        own = torch.from_numpy(np.isin(numbers_N, numbers)).to(self.world.device)
        image_of_text = torch.from_numpy(np.searchsorted(numbers, numbers_T[kept_T]))
        return CaptionedFeatures(
            self.projected(penultimate[own]),
            self.texts(texts, data.name),
            image_of_text.to(self.world.device),
            numbers,
            tuple(texts),
        )

    @torch.no_grad()
    def texts(self, sentences: Sequence[str], name: str) -> Tensor:
        """(T, D) of unit length.

        Args:
            sentences: the same on every rank.
            name: what they are of, for the progress bar.
        """
        cache = self._text_cache("text", len(sentences), sentences)
        order = InOrder(len(sentences), _SENTENCES, self.world.rank, self.world.size)
        rows = list[Tensor]()

        def encode() -> None:
            with progress_bar(self.world, f"{name}: texts", order.steps_per_epoch) as advance:
                for step in range(order.steps_per_epoch):
                    numbers = order.batch(0, step)
                    rows.append(self._texts([sentences[n] for n in numbers], numbers, cache))
                    advance(1)

        by_all(self.world, encode)
        return all_rows(self.world, rows)

    @torch.no_grad()
    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(D, C); see `zero_shot_classifier`."""
        cache = self._text_cache("classifier", len(names), [*names, "", *templates])
        main, device = self.world.is_main, self.world.device
        kept = _rows_of(cache, np.arange(len(names))) if main else None
        if self.world.from_main(kept is not None):
            return all_rows(self.world, [] if kept is None else [kept.to(device)]).T
        own = len(names) * (self.world.rank + 1) // self.world.size
        own -= len(names) * self.world.rank // self.world.size
        with (
            progress_bar(self.world, "classes", own) as advance,
            autocast(device, self.settings.precision),
        ):
            classifier = zero_shot_classifier(
                self.model, names, templates, world=self.world, progress=advance
            ).float()
        if cache is not None and main:
            cache.put(np.arange(len(names)), classifier.T)
        return classifier

    def _images(self, data: Data) -> ImageFeatures:
        cache = self._cache(
            "image",
            len(data.samples),
            lambda: (
                {"samples": data.samples.fingerprint, "features": "penultimate"} | self._image_key
            ),
        )
        every = np.arange(len(data.samples))
        kept = None
        if cache is not None and cache.filled == len(every):
            kept = _rows_of(cache, every)
        if all(self.world.all(kept is not None)) and kept is not None:
            return ImageFeatures(kept.to(self.world.device), every)
        self.encoder.use(Caches(image=cache))
        numbers = list[Tensor]()

        def encode(batch: Batch) -> Tensor:
            numbers.append(torch.from_numpy(batch.numbers)[:, None].to(self.world.device))
            return self.encoder.penultimate(batch)

        rows = self._pass(data, None, encode, numbers.clear)
        self.encoder.use(Caches())
        penultimate, found = all_rows(self.world, rows), all_rows(self.world, numbers)
        return ImageFeatures(penultimate, found.flatten().cpu().numpy().astype(np.int64))

    @torch.no_grad()
    def _pass(
        self,
        data: Data,
        read_caption: CaptionReader | None,
        encode: Callable[[Batch], Tensor],
        restart: Callable[[], None],
    ) -> list[Tensor]:
        """What `encode` makes of this rank's batches.

        Args:
            restart: called before another try, with half the batch size.
        """
        self._find_batch_size(data)
        rows = list[Tensor]()

        def work() -> bool:
            try:
                for batch in self._batches(data, read_caption):
                    rows.append(encode(batch))
            except torch.OutOfMemoryError:
                return False
            return True

        while not all(self.world.all(by_all(self.world, work))):
            rows.clear()
            restart()
            self._halve_batch_size()
        return rows

    def _batches(self, data: Data, read_caption: CaptionReader | None) -> Iterator[Batch]:
        """This rank's; those of which no sample can be used are left out."""
        loader = self._loader(data, read_caption)
        with progress_bar(
            self.world, f"evaluating: {data.name}", loader.sampler.steps_per_epoch
        ) as advance:
            for batch in prefetch(loader.epoch(0), self.world.device):
                if batch.samples:
                    yield batch
                advance(1)

    def _loader(self, data: Data, read_caption: CaptionReader | None) -> Loader:
        settings, world, size = self.settings, self.world, image_size(self.model)
        assert self._batch_size is not None
        decoder = choose_decoder(
            settings.decoder,
            size=size,
            augmentation=Augmentation(),
            view=settings.preprocess.view,
            device=world.device,
            threads=max(1, settings.workers),
            max_batch=self._batch_size,
        )
        return Loader(
            data.samples,
            InOrder(len(data.samples), self._batch_size, world.rank, world.size),
            decoder=decoder,
            image_size=size,
            read_caption=read_caption,
            tokenize=tokenizer_for(self.model),
            augment=False,
            workers=settings.workers,
            quarantine=data.quarantine,
            caches=self.encoder.caches,
        )

    def _find_batch_size(self, data: Data) -> None:
        """The same on all ranks, whose batches are those of one."""
        if self._batch_size is not None:
            return
        side = image_size(self.model)

        def encode(size: int) -> Tensor:
            images = torch.zeros(size, 3, side, side, dtype=torch.uint8, device=self.world.device)
            return self.encoder.penultimate(Batch(images, images, np.arange(size)))

        found = None
        most = -(-len(data.samples) // self.world.size)
        if self.world.is_main:
            found = fastest_batch_size(encode, self.world.device, most)
        self._batch_size = self.world.from_main(found)
        logger.info(f"batch size: {self._batch_size}, as larger ones are no faster or do not fit")

    def _halve_batch_size(self) -> None:
        assert self._batch_size is not None
        if self.settings.batch_size is not None or self._batch_size == 1:
            refuse(
                self.world,
                "--batch-size: expected batches that the device's memory holds; got "
                f"{self._batch_size}, for which it is too small",
            )
        self._batch_size //= 2
        logger.warning(f"batch size: {self._batch_size} from here on: memory is short")

    def _captions(self, data: Data, read: CaptionReader) -> tuple[list[str], NDArray[np.int64]]:
        """All captions that can be used, and the number of each one's sample."""
        rank, size, count = self.world.rank, self.world.size, len(data.samples)
        own = range(count * rank // size, count * (rank + 1) // size)
        found = list[tuple[int, str]]()

        def work() -> None:
            for number in own:
                try:
                    texts = read.all(data.samples.read(number, image=False).captions)
                except UnusableError as error:
                    place = error.place or data.samples.place(number)
                    data.quarantine.replace(Fault(place, str(error)))
                else:
                    found.extend((number, text) for text in texts)

        by_all(self.world, work)
        of_all = [pair for share in self.world.all(found) for pair in share]
        return [text for _, text in of_all], np.array([n for n, _ in of_all], np.int64)

    def _texts(
        self, sentences: list[str], numbers: NDArray[np.int64], cache: FeatureCache | None
    ) -> Tensor:
        kept = _rows_of(cache, numbers)
        if kept is not None:
            return kept.to(self.world.device)
        with autocast(self.world.device, self.settings.precision):
            rows = encode_sentences(self.model, sentences).float()
        if cache is not None:
            cache.put(numbers, rows)
        return rows

    def _text_cache(self, kind: str, rows: int, texts: Sequence[str]) -> FeatureCache | None:
        digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
        return self._cache(kind, rows, lambda: {"texts": digest} | self._text_key)

    def _cache(
        self, kind: str, rows: int, key: Callable[[], dict[str, str]]
    ) -> FeatureCache | None:
        folder, precision = self.settings.cache, {"precision": self.settings.precision}
        if folder is None or not rows:
            return None
        return by_all(
            self.world, lambda: FeatureCache(folder, kind, samples=rows, key=key() | precision)
        )

    @cached_property
    def _image_key(self) -> dict[str, str]:
        return image_key(self.model, self.settings.preprocess)

    @cached_property
    def _text_key(self) -> dict[str, str]:
        return text_key(self.model)

    def _tell_left_out(self, data: Data, used: int) -> None:
        """Logs the faults that are new, and how many samples are left out.

        Raises:
            UserError: all of them.
        """
        new = [fault for faults in self.world.all(data.left_out) for fault in faults]
        data.left_out.clear()
        for place, reason in new[:_TOLD]:
            logger.warning(f"{data.name}: {place.key} in {place.shard}: {reason}")
        if used == 0:
            refuse(self.world, f"{data.name}: expected samples that can be used; got none")
        if used < len(data.samples):
            logger.warning(
                f"{data.name}: {len(data.samples) - used:,} of {len(data.samples):,} cannot be "
                "used and are left out"
            )


def _rows_of(cache: FeatureCache | None, numbers: NDArray[np.int64]) -> Tensor | None:
    """(n, D), if the cache has all of them."""
    if cache is None:
        return None
    rows = [cache.get(number) for number in numbers.tolist()]
    whole = [row for row in rows if row is not None]
    return torch.from_numpy(np.stack(whole)) if len(whole) == len(rows) else None
