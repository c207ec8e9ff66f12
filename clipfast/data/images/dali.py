"""The decoder that runs NVIDIA DALI, on a GPU or on the CPU, over a whole batch.

No GPU has run this file: its pipeline is tested on DALI's CPU operators, of the same names.

B images, H and W an image's or a crop's height and width, S the model's size.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from torch import Tensor

from clipfast.data.images.augmentation import Augmentation, Box, Draw
from clipfast.data.images.colour import recolour
from clipfast.data.images.decode import is_elongated, is_plain, resized_size
from clipfast.data.images.decoders import Decoded
from clipfast.data.images.native import Planned, decode_planned, look_at
from clipfast.data.images.preprocess import View
from clipfast.data.images.resize_plan import PASSES, plan
from clipfast.data.sources.samples import UnusableError


class DaliDecoder:
    """Decodes by DALI what its operators show as open_clip does, and the rest natively.

    Args:
        size: S.
        augmentation: of training.
        view: of evaluation; any but CLIP's is decoded natively.
        device: a CUDA device, or the CPU.
        threads: of DALI on the CPU.
        max_batch: how many images it decodes at once.
    """

    name, part = "dali", 0

    def __init__(
        self,
        size: int,
        augmentation: Augmentation,
        view: View = View(),  # noqa: B008  immutable
        *,
        device: torch.device,
        threads: int,
        max_batch: int,
    ) -> None:
        self.size, self.augmentation, self.view = size, augmentation, view
        self.max_batch = max_batch
        self.device = device
        self._pipeline = _pipeline(device, threads, max_batch)
        self._running = threading.Lock()
        self._natively = ThreadPoolExecutor(threads, "clipfast-decode")

    def __call__(self, encoded: Sequence[bytes], randoms: Sequence[Random] | None) -> Decoded:
        shape = (len(encoded), self.size, self.size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, device=self.device).permute(0, 3, 1, 2)
        images, faults = look_at(encoded, randoms, self.augmentation)
        ours = [image for image in images if _is_for_dali(image, self.view)]
        rest = [image for image in images if not _is_for_dali(image, self.view)]
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
        return Decoded(pixels, dict(sorted(faults.items())))

    def _decode_natively(self, image: Planned) -> Tensor | str:
        """(3, S, S) uint8, or why not."""
        try:
            return decode_planned(image, self.size, self.view)
        except UnusableError as error:
            return str(error)

    def _decode(self, images: list[Planned], pixels: Tensor, faults: dict[int, str]) -> None:
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

    def _run(self, images: list[Planned]) -> Tensor:
        """(B, 3, S, S) uint8."""
        inputs = _inputs(images, self.size)
        with self._running:
            if self.device.type == "cuda":
                inputs["cuda_stream"] = torch.cuda.current_stream(self.device)
            (output,) = self._pipeline.run(**inputs)
            return torch.from_dlpack(output.as_tensor()).clone().permute(0, 3, 1, 2)


def _is_for_dali(image: Planned, view: View) -> bool:
    header = image.header
    bicubic = view == View() if image.draw is None else image.draw.interpolation == "bicubic"
    return bicubic and is_plain(header) and header.bits == 8 and not is_elongated(header)


def _reason(error: RuntimeError) -> str:
    found = re.search(r"encountered:\s*(.+)", str(error))
    return found.group(1) if found else str(error).splitlines()[0]


def _inputs(images: list[Planned], size: int) -> dict[str, Any]:
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
        "device_id": _index(device) if on_gpu else None,
        "prefetch_queue_depth": 1,
        # The executor that still works after an image could not be decoded.
        "exec_dynamic": True,
    }
    pipeline = Pipeline(**options)
    with pipeline:
        image = fn.decoders.image_slice(
            _input("encoded", DALIDataType.UINT8, 1),
            start=_input("anchor", DALIDataType.INT32, 1),
            shape=_input("extent", DALIDataType.INT32, 1),
            axes=(0, 1),
            output_type=DALIImageType.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
            device="mixed" if on_gpu else "cpu",
        )
        for name, axis in PASSES.items():
            image = _resized(image, name, axis, on_gpu)
        pipeline.set_outputs(image)
    pipeline.build()
    return pipeline


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _resized(image: Any, name: str, axis: int, on_gpu: bool) -> Any:
    """One pass as Pillow makes it: at the borders it has fewer taps, and weighs them more.

    DALI repeats the outermost pixels there. With zeros around the image they add nothing, and a
    gain for each output makes up for the weights that met zeros.
    """
    padded = fn.slice(
        image,
        start=_input(f"{name}_anchor", DALIDataType.INT32, 1),
        shape=_input(f"{name}_extent", DALIDataType.INT32, 1),
        axes=[axis],
        out_of_bounds_policy="pad",
        fill_values=0,
    )
    resized = fn.resize(
        padded,
        roi_start=_input(f"{name}_start", DALIDataType.FLOAT, 1),
        roi_end=_input(f"{name}_end", DALIDataType.FLOAT, 1),
        mode="stretch",
        interp_type=DALIInterpType.INTERP_CUBIC,
        antialias=True,
        dtype=DALIDataType.FLOAT,
        **{f"resize_{'yx'[axis]}": _input(f"{name}_size", DALIDataType.FLOAT, 0)},
    )
    gain = _input(f"{name}_gain", DALIDataType.FLOAT, 3)
    return fn.cast(resized * (gain.gpu() if on_gpu else gain), dtype=DALIDataType.UINT8)


def _input(name: str, dtype: DALIDataType, dimensions: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=dimensions, batch=True)
