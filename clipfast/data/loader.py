"""From shards to training batches, a few steps ahead of the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipfast.data.decode import CorruptImageError, RandomCrop, train_pixels
from clipfast.data.sampler import Sampler
from clipfast.data.shards import Sample, ShardSet
from clipfast.data.tokenizer import tokenize
from clipfast.errors import UserError
from clipfast.packed_text import PackedText

_SUBSTITUTES = 20


class Batch(NamedTuple):
    """Attributes:
    images: (B, 3, S, S) uint8.
    text: B packed captions.
    numbers: (B,) int64, which samples these are.
    """

    images: Tensor
    text: PackedText
    numbers: np.ndarray


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
        context_length: longer captions are cut.
        crop: augmentation.
        workers: decoding threads, and how many steps are prepared ahead; 0 decodes in the
            caller's thread.
        on_rejected: called once for every sample that was replaced.
    """

    def __init__(
        self,
        shards: ShardSet,
        sampler: Sampler,
        *,
        image_size: int,
        context_length: int,
        crop: RandomCrop,
        workers: int,
        on_rejected: Callable[[Rejected], None],
    ) -> None:
        self.shards, self.sampler = shards, sampler
        self.image_size, self.context_length, self.crop = image_size, context_length, crop
        self.workers, self.on_rejected = workers, on_rejected
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
        size = self.image_size
        images = torch.empty(len(numbers), 3, size, size, dtype=torch.uint8)
        captions = []
        for row, number in enumerate(numbers):
            numbers[row], images[row], caption = self._usable(epoch, int(number))
            captions.append(caption)
        text = tokenize(captions, self.context_length, packed=True)
        assert isinstance(text, PackedText)
        return Batch(images, text, numbers)

    def _usable(self, epoch: int, number: int) -> tuple[int, Tensor, str]:
        """The sample, or the first substitute that can be used."""
        candidate = number
        for attempt in range(1, _SUBSTITUTES + 1):
            sample = self.shards.read(candidate)
            try:
                random = self.sampler.generator(epoch, candidate)
                pixels = train_pixels(sample.image, self.image_size, self.crop, random)
                return candidate, pixels, read_caption(sample.caption)
            except (CorruptImageError, BadCaptionError) as error:
                self._reject(candidate, Rejected(sample, str(error)))
            candidate = self.sampler.substitute(epoch, number, attempt)
        raise UserError(
            f"data: expected mostly usable samples; {_SUBSTITUTES} drawn in a row were not, the "
            f"last {sample.key} in {sample.shard}"
        )

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
