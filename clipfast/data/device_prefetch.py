"""Batches on the device before they are needed. No GPU has run this."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clipfast.data.batch import Batch


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; on a GPU each is copied while the step before it computes.

    The copy runs in a stream of its own, from pinned memory, and the step's stream waits for it.
    Memory: one batch more on the device.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ready = None
    for batch in batches:
        with torch.cuda.stream(stream):
            images = batch.images.to(device, non_blocking=True)
            text = batch.text.to(device, non_blocking=True)
        coming = batch._replace(images=images, text=text)
        if ready is not None:
            yield _handed_over(ready, stream)
        ready = coming
    if ready is not None:
        yield _handed_over(ready, stream)


def _handed_over(batch: Batch, stream: torch.cuda.Stream) -> Batch:
    current = torch.cuda.current_stream()
    current.wait_stream(stream)
    for tensor in (batch.images, *(batch.text if isinstance(batch.text, tuple) else [batch.text])):
        tensor.record_stream(current)  # its memory is not reused before the step is done with it
    return batch
