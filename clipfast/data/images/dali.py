"""The decoder that runs NVIDIA DALI, on a GPU or on the CPU, over a whole batch.

No GPU has run this file: its pipeline is tested on DALI's CPU operators, of the same names.

B images, H and W an image's or a crop's height and width, S the model's size.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation, Box, Draw
from clipfast.data.images.colour import recolour
from clipfast.data.images.decode import (
    crop_and_resize,
    is_elongated,
    is_plain,
    resize_and_centre,
    resized_size,
)
from clipfast.data.images.decoders import Decoded
from clipfast.data.images.header import Header, read_header
from clipfast.data.images.resize_plan import PASSES, Pass, plan
from clipfast.data.sources.samples import UnusableError


class _Image(NamedTuple):
    row: int
    encoded: bytes
    header: Header
    draw: Draw | None  # None shows it as evaluation does


class DaliDecoder:
    """Decodes by DALI what its operators show as open_clip does, and the rest natively.

    Args:
        size: S.
        augmentation: of training.
        device: a CUDA device, or the CPU.
        threads: of DALI on the CPU.
        max_batch: how many images it decodes at once.
    """

    name, part = "dali", 0

    def __init__(
        self,
        size: int,
        augmentation: Augmentation,
        *,
        device: torch.device,
        threads: int,
        max_batch: int,
    ) -> None:
        self.size, self.augmentation, self.max_batch = size, augmentation, max_batch
        self.device = device
        self._pipeline = _pipeline(device, threads, max_batch)
        self._running = threading.Lock()
        self._natively = ThreadPoolExecutor(threads, "clipfast-decode")

    def __call__(self, encoded: Sequence[bytes], randoms: Sequence[Random] | None) -> Decoded:
        shape = (len(encoded), self.size, self.size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        faults: dict[int, str] = {}
        images = []
        for row, data in enumerate(encoded):
            try:
                images.append(self._look_at(row, data, randoms and randoms[row]))
            except UnusableError as error:
                faults[row] = str(error)
        ours = [image for image in images if _is_for_dali(image)]
        rest = [image for image in images if not _is_for_dali(image)]
        native = self._natively.map(self._decode_natively, rest)
        for first in range(0, len(ours), self.max_batch):
            self._decode(ours[first : first + self.max_batch], pixels, faults)
        for image, decoded in zip(rest, native, strict=True):
            if isinstance(decoded, str):
                faults[image.row] = decoded
            else:
                pixels[image.row] = decoded.to(self.device)
        unchanged = Draw(Box(0, 0, 0, 0))
        draws = {image.row: image.draw for image in images if image.row not in faults}
        recolour(pixels, [draws.get(row) or unchanged for row in range(len(encoded))])
        return Decoded(pixels, faults)

    def _look_at(self, row: int, encoded: bytes, random: Random | None) -> _Image:
        header = read_header(encoded)
        if random is None:
            return _Image(row, encoded, header, None)
        draw = self.augmentation.draw(header.height, header.width, random)
        return _Image(row, encoded, header, draw)

    def _decode_natively(self, image: _Image) -> Tensor | str:
        """(3, S, S) uint8, or why not."""
        try:
            if image.draw is None:
                return resize_and_centre(image.encoded, image.header, self.size)
            return crop_and_resize(image.encoded, image.header, image.draw.box, self.size)
        except UnusableError as error:
            return str(error)

    def _decode(self, images: list[_Image], pixels: Tensor, faults: dict[int, str]) -> None:
        """One bad image fails its whole batch, which halves find."""
        if not images:
            return
        try:
            pixels[[image.row for image in images]] = self._run(images)
        except RuntimeError as error:
            if len(images) == 1:
                faults[images[0].row] = f"damaged {images[0].header.format}: {_reason(error)}"
                return
            half = len(images) // 2
            self._decode(images[:half], pixels, faults)
            self._decode(images[half:], pixels, faults)

    def _run(self, images: list[_Image]) -> Tensor:
        """(B, 3, S, S) uint8."""
        inputs = _inputs(images, self.size)
        with self._running:
            if self.device.type == "cuda":
                inputs["cuda_stream"] = torch.cuda.current_stream(self.device)
            (output,) = self._pipeline.run(**inputs)
            return torch.from_dlpack(output.as_tensor()).clone().permute(0, 3, 1, 2)


def _is_for_dali(image: _Image) -> bool:
    header = image.header
    return is_plain(header) and header.bits == 8 and not is_elongated(header)


def _reason(error: RuntimeError) -> str:
    found = re.search(r"encountered:\s*(.+)", str(error))
    return found.group(1) if found else str(error).splitlines()[0]


def _inputs(images: list[_Image], size: int) -> dict[str, Any]:
    """What the pipeline's inputs of those names get."""
    inputs: dict[str, list[Any]] = {
        "encoded": [np.frombuffer(image.encoded, np.uint8) for image in images]
    }
    for image in images:
        height, width = image.header.height, image.header.width
        box = Box(0, 0, height, width) if image.draw is None else image.draw.box
        _add(inputs, "anchor", np.array(box[:2], np.int32))
        _add(inputs, "extent", np.array(box[2:], np.int32))
        whole = resized_size(height, width, size) if image.draw is None else (size, size)
        for name, step in zip(PASSES, plan(box.height, box.width, *whole, size), strict=True):
            for key, value in step._asdict().items():
                _add(inputs, f"{name}_{key}", value)
    return inputs


def _add(inputs: dict[str, list[Any]], name: str, value: object) -> None:
    inputs.setdefault(name, []).append(value)


def _pipeline(device: torch.device, threads: int, max_batch: int) -> Pipeline:
    """Encoded bytes to a crop, then one resize for each of `PASSES`."""
    on_gpu = device.type == "cuda"
    options = {
        "batch_size": max_batch,
        "num_threads": threads,
        "device_id": (device.index or 0) if on_gpu else None,
        "prefetch_queue_depth": 1,
        # The executor that still works after an image could not be decoded.
        "exec_dynamic": True,
    }
    pipeline = Pipeline(**options)
    with pipeline:
        image = fn.decoders.image_slice(
            _input("encoded", types.UINT8, 1),
            start=_input("anchor", types.INT32, 1),
            shape=_input("extent", types.INT32, 1),
            axes=(0, 1),
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            device="mixed" if on_gpu else "cpu",
        )
        for name, axis in PASSES.items():
            image = _resized(image, name, axis, on_gpu)
        pipeline.set_outputs(image)
    pipeline.build()
    return pipeline


def _resized(image: Any, name: str, axis: int, on_gpu: bool) -> Any:
    """One pass as Pillow makes it: at the borders it has fewer taps, and weighs them more.

    DALI repeats the outermost pixels there. With zeros around the image they add nothing, and a
    gain for each output makes up for the weights that met zeros.
    """
    padded = fn.slice(
        image,
        start=_input(f"{name}_anchor", types.INT32, 1),
        shape=_input(f"{name}_extent", types.INT32, 1),
        axes=[axis],
        out_of_bounds_policy="pad",
        fill_values=0,
    )
    resized = fn.resize(
        padded,
        roi_start=_input(f"{name}_start", types.FLOAT, 1),
        roi_end=_input(f"{name}_end", types.FLOAT, 1),
        mode="stretch",
        interp_type=types.INTERP_CUBIC,
        antialias=True,
        dtype=types.FLOAT,
        **{f"resize_{'yx'[axis]}": _input(f"{name}_size", types.FLOAT, 0)},
    )
    gain = _input(f"{name}_gain", types.FLOAT, 3)
    return fn.cast(resized * (gain.gpu() if on_gpu else gain), dtype=types.UINT8)


def _input(name: str, dtype: types.DALIDataType, dimensions: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=dimensions, batch=True)
