"""From samples to training batches, a few steps ahead of the model.

B samples per step, S the model's image size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

from clipfast.data.batch import Batch, join_text
from clipfast.data.feature_cache import FeatureCache, gather
from clipfast.data.images.decoders import Decoder
from clipfast.data.quarantine import Quarantine
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Fault, Place, UnusableError
from clipfast.errors import UserError
from clipfast.packed_text import PackedText

_SUBSTITUTES = 20
_STEPS_AHEAD = 2


class Caches(NamedTuple):
    """Features of locked towers, None for a tower without. A sample's image is not read, and its
    caption not tokenized, where these have them; one that has several captions keeps the first."""

    image: FeatureCache | None = None
    text: FeatureCache | None = None


class SampleOrder(Protocol):
    """Which samples form which step: `Sampler` in training, `InOrder` in evaluation.

    Attributes:
        steps_per_epoch: of this process.
    """

    steps_per_epoch: int

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The numbers of a step's samples."""

    def substitute(self, epoch: int, number: int, attempt: int) -> int | None:
        """The sample that takes the place of an unusable one, `attempt` = 1, 2, …; None leaves the
        place out."""

    def generator(self, epoch: int, number: int) -> Random | None:
        """The random numbers of one sample in one epoch; None takes its first caption."""


class Loader:
    """Reads, decodes and tokenizes the sampler's steps in threads, in order.

    A sample that cannot be used is replaced by another, so every step is full, or left out, as the
    sampler has it, and listed once.

    Args:
        samples: by number.
        sampler: their order.
        decoder: encoded images to pixels of S × S.
        image_size: S.
        read_caption: a sample's captions to the one that is shown; the first without random
            numbers. None shows images alone.
        tokenize: captions to ids; called from several threads.
        augment: False shows each image as evaluation does.
        workers: threads; 0 works in the caller's.
        quarantine: lists what was replaced or left out.
        caches: of locked towers.
    """

    def __init__(
        self,
        samples: SampleSet,
        sampler: SampleOrder,
        *,
        decoder: Decoder,
        image_size: int,
        read_caption: Callable[[Sequence[bytes], Random | None], str] | None,
        tokenize: Callable[[Sequence[str]], PackedText | Tensor],
        augment: bool,
        workers: int,
        quarantine: Quarantine,
        caches: Caches | None = None,
    ) -> None:
        self.samples, self.sampler = samples, sampler
        self.decoder, self.image_size, self.augment = decoder, image_size, augment
        self.read_caption, self.tokenize = read_caption, tokenize
        self.workers, self.quarantine, self.caches = workers, quarantine, caches or Caches()

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The epoch's batches from `first_step` on.

        Raises:
            UserError: too many samples are unusable, or in a row.
        """
        steps = range(first_step, self.sampler.steps_per_epoch)
        if self.workers == 0:
            yield from (self.batch(epoch, step) for step in steps)
            return
        ahead = deque[tuple[_Step, list[Future[None]]]]()
        with ThreadPoolExecutor(self.workers, "clipfast-decode", take_one_core) as pool:
            try:
                for step in steps:
                    work = _Step(self, epoch, step)
                    ahead.append((work, [pool.submit(work.fill, part) for part in work.parts]))
                    if len(ahead) > _STEPS_AHEAD:
                        yield _finished(*ahead.popleft())
                while ahead:
                    yield _finished(*ahead.popleft())
            finally:
                for _, waiting in ahead:
                    for future in waiting:
                        future.cancel()

    def batch(self, epoch: int, step: int) -> Batch:
        """One step, in the caller's thread."""
        work = _Step(self, epoch, step)
        for part in work.parts:
            work.fill(part)
        return work.batch()


def take_one_core() -> None:
    """Keeps a thread's tensor operations in it: the pool has a thread for each core already."""
    # In OpenMP that is a setting of the thread; torch.set_num_threads is the whole process's.
    _thread_pools().limit(limits=1, user_api="openmp")


# Looking for them takes as long as decoding twenty images.
_thread_pools = cache(ThreadpoolController)


@dataclass
class _Slot:
    """A row of a batch, and the sample that fills it."""

    row: int
    asked: int  # the sampler's sample
    number: int  # that, or its substitute
    attempts: int = 0
    left_out: bool = False
    encoded: bytes | None = None
    caption: str | None = None
    place: Place | None = None
    random: Random | None = None
    image_row: NDArray[np.float32] | None = None
    text_row: NDArray[np.float32] | None = None


class _Step:
    """A batch while it is made, in parts that threads fill."""

    def __init__(self, loader: Loader, epoch: int, step: int) -> None:
        self.loader, self.epoch = loader, epoch
        numbers = loader.sampler.batch(epoch, step).tolist()
        self.slots = [_Slot(row, number, number) for row, number in enumerate(numbers)]
        size = loader.decoder.part or len(self.slots)
        self.parts = [self.slots[i : i + size] for i in range(0, len(self.slots), size)]
        self.texts = dict[int, PackedText | Tensor]()
        device, side = loader.decoder.device, loader.image_size
        self.images = torch.empty(
            (len(numbers), 3, side, side),
            dtype=torch.uint8,
            device=device,
            memory_format=torch.channels_last,  # the decoders'
            pin_memory=device.type == "cpu" and torch.cuda.is_available(),
        )

    def fill(self, slots: list[_Slot]) -> None:
        """Reads, decodes and tokenizes a part; what cannot be used is replaced or left out."""
        self.loader.quarantine.tried(len(slots))
        waiting = slots
        while waiting:
            unusable = [slot for slot in waiting if not self._read(slot)]
            unusable += self._decode([slot for slot in waiting if slot.encoded is not None])
            waiting = [slot for slot in unusable if not slot.left_out]
        captions = [slot.caption for slot in slots if slot.caption is not None]
        if captions:
            self.texts[slots[0].row] = self.loader.tokenize(captions)

    def batch(self) -> Batch:
        """Of all parts, once they are filled."""
        caches, images = self.loader.caches, self.images
        slots = [slot for slot in self.slots if not slot.left_out]
        decoded = [slot.row for slot in slots if slot.image_row is None]
        if len(decoded) < len(images):
            images = images[decoded]
        return Batch(
            images,
            join_text([text for _, text in sorted(self.texts.items())]),
            np.array([slot.number for slot in slots], np.int64),
            None if caches.image is None else gather([slot.image_row for slot in slots]),
            None if caches.text is None else gather([slot.text_row for slot in slots]),
        )

    def _read(self, slot: _Slot) -> bool:
        """Whether the slot's sample can be used, but for what decoding its image tells."""
        loader, caches = self.loader, self.loader.caches
        slot.encoded = slot.caption = None
        slot.image_row = None if caches.image is None else caches.image.get(slot.number)
        slot.text_row = None if caches.text is None else caches.text.get(slot.number)
        shows_text = loader.read_caption is not None and slot.text_row is None
        if slot.image_row is not None and not shows_text:
            return True
        slot.random = loader.sampler.generator(self.epoch, slot.number)
        slot.place = None
        try:
            sample = loader.samples.read(slot.number, image=slot.image_row is None)
            slot.place = sample.place
            if shows_text and loader.read_caption is not None:
                random = slot.random if caches.text is None else None
                slot.caption = loader.read_caption(sample.captions, random)
        except UnusableError as error:
            self._replace(slot, error.place, str(error))
            return False
        if slot.image_row is None:
            slot.encoded = sample.image
        return True

    def _decode(self, slots: list[_Slot]) -> list[_Slot]:
        """Those whose image cannot be used."""
        if not slots:
            return []
        randoms = [slot.random for slot in slots if slot.random] if self.loader.augment else None
        encoded = [slot.encoded for slot in slots if slot.encoded is not None]
        pixels, faults = self.loader.decoder(encoded, randoms)
        for i, slot in enumerate(slots):
            if i not in faults:
                self.images[slot.row] = pixels[i]
        for i, reason in faults.items():
            self._replace(slots[i], slots[i].place, reason)
        for slot in slots:
            slot.encoded = None
        return [slots[i] for i in faults]

    def _replace(self, slot: _Slot, place: Place | None, reason: str) -> None:
        loader = self.loader
        place = place or loader.samples.place(slot.number)
        loader.quarantine.replace(Fault(place, reason))
        slot.attempts += 1
        slot.encoded = slot.caption = None
        if slot.attempts == _SUBSTITUTES:
            raise UserError(
                f"data: expected mostly usable samples; {_SUBSTITUTES} drawn in a row were not, "
                f"the last {place.key} in {place.shard}: {reason}"
            )
        substitute = loader.sampler.substitute(self.epoch, slot.asked, slot.attempts)
        if substitute is None:
            slot.left_out = True
        else:
            slot.number = substitute


def _finished(step: _Step, parts: list[Future[None]]) -> Batch:
    for part in parts:
        part.result()
    return step.batch()
