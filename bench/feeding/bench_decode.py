"""Encoded photo to a training crop of 224 × 224 on one core, beside open_clip's on Pillow.

open_clip's ends in normalised floats. Ours leaves uint8, which the device normalises.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.cases import FIRST, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Samples, Subject
from clipfast_bench.inputs.photos import KINDS, photos
from PIL import Image

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decode import decode
from clipfast.data.images.decoders import Decoder, choose_decoder
from clipfast.data.images.header import read_header

SIZE, BATCH = 224, 16
SMALL = "short side 256"
_LEVELS = 2.0  # of 255 that a pixel may be off
_CROP_LEVELS = 2.0  # on average over a whole image that another library resizes


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "kind",
    [
        case(kind, id=kind.replace("×", "x"), tier=FIRST if kind == SMALL else MORE)
        for kind in KINDS
    ],
)
def test_decode(contest, kind):
    encoded = (photos(kind) * BATCH)[:BATCH]

    def decoder(name: str, *, fast_jpeg: bool = False) -> Callable[[], Entrant]:
        def make() -> Entrant:
            made = _decoder(name, fast_jpeg=fast_jpeg)
            # Decoded at a fraction of their size, pixels are others.
            answer = None if fast_jpeg else lambda: _pixels(made, encoded[:2])
            return Entrant(_run(made, encoded), answer, BATCH)

        return make

    contest.hold(
        Subject("decode", dtype="uint8"),
        [
            Contender(OURS, decoder("native")),
            Contender("open_clip", lambda: _open_clips(encoded), peers.open_clip),
            Contender("DALI in our loader", decoder("dali"), peers.dali),
            Contender("DALI, a plain pipeline", lambda: _plain_dali(encoded), peers.dali),
            Contender("decoding", lambda: _decoding(encoded), is_peer=False),
            Contender("--fast-jpeg", decoder("native", fast_jpeg=True), is_peer=False),
        ],
        rounds=9,
        figures=_figures,
    )


def _figures(samples: Samples) -> dict[str, float]:
    """Of an image."""
    middle = {name: sorted(found)[len(found) // 2] for name, found in samples.items()}
    return {
        "images/s": 1 / middle[OURS],
        "ms of decoding alone": 1000 * middle["decoding"],
        "ms with --fast-jpeg": 1000 * middle["--fast-jpeg"],
    }


def _open_clips(encoded: list[bytes]) -> Entrant:
    """Its transform on Pillow; its answer is the crop of Pillow's, as ours is held to."""
    from open_clip.transform import image_transform

    transform = image_transform(SIZE, is_train=True)
    return Entrant(
        lambda: [transform(Image.open(io.BytesIO(e))) for e in encoded],
        lambda: Answer(0.0, _LEVELS, "levels of 255"),
        BATCH,
    )


def _decoding(encoded: list[bytes]) -> Entrant:
    return Entrant(lambda: _decode(encoded), units=BATCH)


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


def _plain_dali(encoded: list[bytes]) -> Entrant:
    """As one writes it: its random crop and one resize, whose pixels differ a little at borders.

    Its answer is that of the same pipeline whose crop is the whole image.
    """
    whole = Image.open(io.BytesIO(encoded[0]))
    answer_to = [encoded[0]] * BATCH
    run_whole = _dali_pipeline(answer_to, area=(1.0, 1.0), ratio=(whole.width / whole.height,) * 2)

    def answer() -> Answer:
        (images,) = run_whole()
        actual = np.asarray(images.as_tensor())[0].astype(np.float64)
        expected = whole.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        off = float(np.abs(actual - np.asarray(expected, np.float64)).mean())
        return Answer(off, _CROP_LEVELS, "mean levels of 255")

    augmentation = Augmentation()
    run = _dali_pipeline(encoded, area=augmentation.scale, ratio=augmentation.ratio)
    return Entrant(run, answer, BATCH)


def _dali_pipeline(
    encoded: list[bytes], area: tuple[float, ...], ratio: tuple[float, ...]
) -> Callable[[], tuple]:
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        image = fn.decoders.image_random_crop(
            fn.external_source(name="encoded", dtype=types.UINT8, ndim=1),
            random_area=list(area),
            random_aspect_ratio=list(ratio),
        )
        pipeline.set_outputs(
            fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)
        )
    arrays = [np.frombuffer(e, np.uint8) for e in encoded]
    return lambda: pipeline.run(encoded=arrays)


def _pixels(decoder: Decoder, encoded: list[bytes]) -> Answer:
    """Beside Pillow's crop and resize."""
    randoms = [Random(row) for row in range(len(encoded))]
    pixels, faults = decoder(encoded, randoms)
    if faults:
        return Answer(float("inf"), _LEVELS, "an image could not be decoded")
    off = []
    for row, data in enumerate(encoded):
        image = Image.open(io.BytesIO(data))
        box = Augmentation().draw(image.height, image.width, Random(row)).box
        part = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        expected = np.array(part.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        ours = pixels[row].permute(1, 2, 0).numpy().astype(np.int16)
        off.append(float(np.abs(ours - expected).max()))
    return Answer(max(off), _LEVELS, "levels of 255")
