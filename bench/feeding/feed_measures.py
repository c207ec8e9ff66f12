"""How fast samples are read, tokenized and made into batches, and how long a model's step takes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import torch
from clipfast_bench.feeding.feed_report import Feeding, Reading, Step, Tokenizing
from clipfast_kernels import contrastive_loss

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.data.loader import Loader
from clipfast.data.sampler import Sampler
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Sample, UnusableError
from clipfast.encoder import Encoder
from clipfast.errors import UserError
from clipfast.train.optim.optimizers import adamw

Progressed = Callable[[float], None]

_SAMPLES = 2000  # that tell what reading and tokenizing cost
_WARM_BATCHES = 3  # as many as are made ahead
_STEPS = 3


def read_some(
    samples: SampleSet, sampler: Sampler, seconds: float, progressed: Progressed
) -> tuple[Reading, list[Sample]]:
    """Reads in the training's order, without decoding.

    Raises:
        UserError: none of them can be read.
    """
    numbers = itertools.chain.from_iterable(sampler.batch(0, step) for step in itertools.count())
    read, size, began = list[Sample](), 0, time.perf_counter()
    for tried, number in enumerate(numbers):
        passed = time.perf_counter() - began
        progressed(passed / seconds)
        if tried == _SAMPLES or passed > seconds:
            break
        try:
            sample = samples.read(int(number))
        except UnusableError:
            continue
        size += len(sample.image) + sum(map(len, sample.captions))
        # Images are done with; captions are tokenized next.
        read.append(sample._replace(image=b""))
    if not read:
        raise UserError(f"data: expected samples that can be read; got none of {tried} tried")
    return Reading(len(read), size / len(read), size / passed), read


def tokenize_some(
    samples: Sequence[Sample],
    read_caption: Callable[[Sequence[bytes], Random | None], str],
    tokenize: Callable[[Sequence[str]], Any],
    seconds: float,
    progressed: Progressed,
) -> Tokenizing:
    """Captions of samples that were read, in batches as large as a loader's."""
    captions = []
    for sample in samples:
        try:
            captions.append(read_caption(sample.captions, None))
        except UnusableError:
            continue
    if not captions:
        raise UserError(f"data: expected captions; got none in {len(samples)} samples")
    tokenize(captions[:64])
    done, began, passed = 0, time.perf_counter(), 0.0
    while passed < seconds:
        for first in range(0, len(captions), 64):
            tokenize(captions[first : first + 64])
        done += len(captions)
        passed = time.perf_counter() - began
        progressed(passed / seconds)
    return Tokenizing(len(captions), done / passed)


def feed_for(loader: Loader, seconds: float, progressed: Progressed) -> Feeding:
    """Takes batches as fast as they come, from when the first ones have."""
    batches = _endless(loader)
    for _ in range(_WARM_BATCHES):
        next(batches)
    images, passed, began, cpu_before = 0, 0.0, time.perf_counter(), time.process_time()
    for batch in batches:
        images += len(batch.numbers)
        passed = time.perf_counter() - began
        progressed(passed / seconds)
        if passed >= seconds:
            break
    cores = time.process_time() - cpu_before
    batches.close()
    decoder = loader.decoder
    return Feeding(
        decoder.name, decoder.device.type, loader.workers, images, images / passed, images / cores
    )


def _endless(loader: Loader) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def time_step(
    name: str, model: Any, batch: Batch, normalize: Normalize, progressed: Progressed
) -> Step:
    """Forward, backward and AdamW on one batch again and again: the median of three steps."""
    device = next(model.parameters()).device
    encoder = Encoder(
        model.train(),
        precision="fp32" if device.type == "cpu" else "amp_bf16",
        normalize=normalize,
        device=device,
        compiled=False,
    )
    optimizer = adamw(model, lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        image, text = encoder.image(batch), encoder.text(batch)
        loss = contrastive_loss(image, text, model.logit_scale.float().exp())
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    times = []
    for done in range(_STEPS + 1):
        times.append(step())
        progressed((done + 1) / (_STEPS + 1))
    return Step(name, len(batch.numbers), statistics.median(times[1:]), str(device))
