"""Encoded photo to a training crop of 224 × 224 on one core, beside open_clip's on Pillow.

open_clip's ends in normalised floats. Ours leaves uint8, which the device normalises.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from clipfast_bench.compare import interleave
from clipfast_bench.photos import KINDS, photos
from open_clip.transform import image_transform
from PIL import Image

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decode import decode
from clipfast.data.images.decoders import Decoder, choose_decoder, has_dali
from clipfast.data.images.header import read_header

SIZE, BATCH = 224, 16


@pytest.mark.parametrize("kind", KINDS)
def test_decode(benchmark, kind):
    encoded = (photos(kind) * BATCH)[:BATCH]
    transform = image_transform(SIZE, is_train=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        native = _decoder("native")
        peers: dict[str, Callable[[], object]] = {
            "open_clip's transform": lambda: [
                transform(Image.open(io.BytesIO(e))) for e in encoded
            ],
            "decoding alone": lambda: _decode(encoded),
            "native --fast-jpeg": _run(_decoder("native", fast_jpeg=True), encoded),
        }
        if has_dali():
            _check(_decoder("dali"), encoded[:2])
            peers["a plain DALI pipeline on the CPU"] = _dali_pipeline(encoded)
        _check(native, encoded[:2])
        ratios = interleave(benchmark, _run(native, encoded), peers, rounds=9, warmup=2)
    finally:
        torch.set_num_threads(threads)
    if ratios:
        per_image = 1000 * benchmark.stats.stats.median / BATCH
        benchmark.extra_info["figures"] = {
            "ms per image": per_image,
            "of which decoding": per_image * ratios["decoding alone"],
        }


def _decoder(name: str, *, fast_jpeg: bool = False) -> Decoder:
    return choose_decoder(
        name,
        size=SIZE,
        augmentation=Augmentation(),
        device=torch.device("cpu"),
        threads=1,
        fast_jpeg=fast_jpeg,
        max_batch=BATCH,
    )


def _run(decoder: Decoder, encoded: list[bytes]) -> Callable[[], object]:
    return lambda: decoder(encoded, [Random(row) for row in range(len(encoded))])


def _decode(encoded: list[bytes]) -> None:
    for data in encoded:
        decode(data, read_header(data))


def _dali_pipeline(encoded: list[bytes]) -> Callable[[], object]:
    """As one writes it: its random crop and one resize, whose pixels differ a little at borders."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = fn.decoders.image_random_crop(
            fn.external_source(name="encoded", dtype=types.UINT8, ndim=1),
            random_area=list(Augmentation.scale),
            random_aspect_ratio=list(Augmentation.ratio),
        )
        pipeline.set_outputs(
            fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
        )
    arrays = [np.frombuffer(e, np.uint8) for e in encoded]
    return lambda: pipeline.run(encoded=arrays)


def _check(decoder: Decoder, encoded: list[bytes]) -> None:
    """Refuses to time wrong pixels: those of Pillow's crop and resize, to 2/255."""
    randoms = [Random(row) for row in range(len(encoded))]
    pixels, faults = decoder(encoded, randoms)
    assert not faults
    for row, data in enumerate(encoded):
        image = Image.open(io.BytesIO(data))
        box = Augmentation().draw(image.height, image.width, Random(row)).box
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        expected = np.array(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        ours = pixels[row].permute(1, 2, 0).numpy().astype(np.int16)
        assert np.abs(ours - expected).max() <= 2
