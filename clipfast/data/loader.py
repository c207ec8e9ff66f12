"""From shards to training batches, a few steps ahead of the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.decode import CorruptImageError, RandomCrop, eval_pixels, train_pixels
from clipfast.data.feature_cache import FeatureCache, Found, gather
from clipfast.data.sampler import Sampler
from clipfast.data.shards import Sample, ShardSet
from clipfast.errors import UserError
from clipfast.packed_text import PackedText, pack_ids

_SUBSTITUTES = 20


class Batch(NamedTuple):
    """Attributes:
    images: (B, 3, S, S) uint8, or of those samples alone that `image_found` lacks.
    text: B captions, packed or (B, L), or of those samples alone that `text_found` lacks.
    numbers: (B,) int64, which samples these are.
    image_found, text_found: what the caches have; None without a cache.
    """

    images: Tensor
    text: PackedText | Tensor
    numbers: np.ndarray
    image_found: Found | None = None
    text_found: Found | None = None


class _Usable(NamedTuple):
    """A sample, but for what its features in the caches stand for."""

    number: int
    pixels: Tensor | None
    caption: str | None
    image_row: NDArray[np.float32] | None
    text_row: NDArray[np.float32] | None


class Rejected(NamedTuple):
    """A sample that could not be used, and why."""

    sample: Sample
    reason: str


class Loader:
    """Decodes the sampler's steps in threads, in order.

    A sample that cannot be used is replaced by another, so every step is full, and reported once.

    Args:
        shards: the samples.
        sampler: their order.
        image_size: S.
        tokenize: captions to ids; called from several threads.
        crop: augmentation; None takes evaluation's resize and centre crop.
        workers: decoding threads, and how many steps are prepared ahead; 0 decodes in the
            caller's thread.
        on_rejected: called once for every sample that was replaced.
        image_cache, text_cache: features of locked towers. A sample's image is not read, and its
            caption not tokenized, where these have the features.
    """

    def __init__(
        self,
        shards: ShardSet,
        sampler: Sampler,
        *,
        image_size: int,
        tokenize: Callable[[Sequence[str]], PackedText | Tensor],
        crop: RandomCrop | None,
        workers: int,
        on_rejected: Callable[[Rejected], None],
        image_cache: FeatureCache | None = None,
        text_cache: FeatureCache | None = None,
    ) -> None:
        self.shards, self.sampler = shards, sampler
        self.image_size, self.tokenize, self.crop = image_size, tokenize, crop
        self.workers, self.on_rejected = workers, on_rejected
        self.image_cache, self.text_cache = image_cache, text_cache
        self._rejected: set[int] = set()
        self._lock = threading.Lock()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `first_step` on.

        Raises:
            UserError: a shard has gone, or too many samples in a row are unusable.
        """
        steps = range(first_step, self.sampler.steps_per_epoch)
        if self.workers == 0:
            yield from (self.batch(epoch, step) for step in steps)
            return
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.workers, "clipfast-decode") as pool:
            try:
                for step in steps:
                    ahead.append(pool.submit(self.batch, epoch, step))
                    if len(ahead) > self.workers + 1:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def batch(self, epoch: int, step: int) -> Batch:
        numbers = self.sampler.batch(epoch, step)
        samples = [self._usable(epoch, int(number)) for number in numbers]
        size = self.image_size
        pixels = [s.pixels for s in samples if s.pixels is not None]
        images = torch.stack(pixels) if pixels else torch.empty(0, 3, size, size, dtype=torch.uint8)
        captions = [s.caption for s in samples if s.caption is not None]
        text = self.tokenize(captions) if captions else pack_ids([])
        return Batch(
            images,
            text,
            np.array([s.number for s in samples]),
            None if self.image_cache is None else gather([s.image_row for s in samples]),
            None if self.text_cache is None else gather([s.text_row for s in samples]),
        )

    def _usable(self, epoch: int, number: int) -> _Usable:
        """The sample, or the first substitute that can be used."""
        candidate = number
        for attempt in range(1, _SUBSTITUTES + 1):
            image_row = None if self.image_cache is None else self.image_cache.get(candidate)
            text_row = None if self.text_cache is None else self.text_cache.get(candidate)
            if image_row is not None and text_row is not None:
                return _Usable(candidate, None, None, image_row, text_row)
            sample = self.shards.read(candidate, image=image_row is None)
            try:
                pixels = self._pixels(epoch, candidate, sample) if image_row is None else None
                caption = read_caption(sample.caption) if text_row is None else None
                return _Usable(candidate, pixels, caption, image_row, text_row)
            except (CorruptImageError, BadCaptionError) as error:
                self._reject(candidate, Rejected(sample, str(error)))
            candidate = self.sampler.substitute(epoch, number, attempt)
        raise UserError(
            f"data: expected mostly usable samples; {_SUBSTITUTES} drawn in a row were not, the "
            f"last {sample.key} in {sample.shard}"
        )

    def _pixels(self, epoch: int, number: int, sample: Sample) -> Tensor:
        if self.crop is None:
            return eval_pixels(sample.image, self.image_size)
        random = self.sampler.generator(epoch, number)
        return train_pixels(sample.image, self.image_size, self.crop, random)

    def _reject(self, number: int, rejected: Rejected) -> None:
        with self._lock:
            if number in self._rejected:
                return
            self._rejected.add(number)
            self.on_rejected(rejected)


class BadCaptionError(UserError):
    """A caption that is empty or no UTF-8."""


def read_caption(encoded: bytes) -> str:
    """Raises:
    BadCaptionError: nothing but white space, or not UTF-8.
    """
    try:
        caption = encoded.decode()
    except UnicodeDecodeError:
        raise BadCaptionError("caption is not UTF-8") from None
    if not caption.strip():
        raise BadCaptionError("empty caption")
    return caption
