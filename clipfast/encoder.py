"""From a batch to the features of both towers: computed, or read from a locked tower's cache.

B samples, D features, W of them penultimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.batch import Batch
from clipfast.data.feature_cache import FeatureCache, Found
from clipfast.data.images.normalize import Normalize
from clipfast.data.loader import Caches
from clipfast.models.clip import TwoTowers
from clipfast.models.compiling import check_compiler
from clipfast.models.penultimate import image_parts
from clipfast.models.precision import autocast, input_dtype


class Encoder:
    """Both towers' features, computed in the model's precision and handed on in its dtype.

    Args:
        model: ours or open_clip's.
        precision: open_clip's name.
        normalize: pixels to the image tower's input, on its device.
        device: the model's.
        compiled: compute by ``torch.compile``.

    Raises:
        UserError: `compiled`, and there is no compiler.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: str,
        normalize: Normalize,
        device: torch.device,
        compiled: bool,
    ) -> None:
        self.model = model
        self.precision, self.normalize, self.device = precision, normalize, device
        self.compiled = compiled
        if compiled:
            check_compiler(device)
        self.caches = Caches()
        self._image = self._fast(model.encode_image)
        self._image_trunk, self._image_head = image_parts(model)
        # Captions are packed: each batch has its own number of tokens.
        self._text = self._fast(model.encode_text, dynamic=True)
        self._text_head: Callable[[Tensor], Tensor] = torch.nn.Identity()

    def use(self, caches: Caches) -> None:
        """Reads them from now on, and fills them with what they lack."""
        self.caches = caches
        if caches.text is not None and isinstance(self.model, TwoTowers):
            self._text = self._fast(self.model.text_trunk, dynamic=True)
            self._text_head = self.model.text_head

    def _fast(
        self, function: Callable[..., Tensor], dynamic: bool | None = None
    ) -> Callable[..., Tensor]:
        return torch.compile(function, dynamic=dynamic) if self.compiled else function

    def image(self, batch: Batch) -> Tensor:
        """(B, D), float32 if they come from a cache."""
        return self._images(self._image, batch)

    def penultimate(self, batch: Batch) -> Tensor:
        """(B, W) float32, of which `projected` makes what `image` gives."""
        return self._images(self._image_trunk, batch).float()

    def projected(self, x_BW: Tensor) -> Tensor:
        """(B, D) float32."""
        with autocast(self.device, self.precision):
            return self._image_head(x_BW.to(input_dtype(self.precision))).float()

    def text(self, batch: Batch) -> Tensor:
        """(B, D)."""
        with autocast(self.device, self.precision):
            if self.caches.text is None or batch.text_found is None:
                return self._encode_text(batch)
            x = self._cached(
                lambda: self._encode_text(batch), self.caches.text, batch.text_found, batch.numbers
            )
            return self._text_head(x.to(input_dtype(self.precision)))

    def _images(self, tower: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        def compute() -> Tensor:
            return tower(self.normalize(batch.images).to(input_dtype(self.precision)))

        with autocast(self.device, self.precision):
            if self.caches.image is None or batch.image_found is None:
                return compute()
            return self._cached(compute, self.caches.image, batch.image_found, batch.numbers)

    def _encode_text(self, batch: Batch) -> Tensor:
        return self._text(batch.text.to(self.device))

    @torch.no_grad()
    def _cached(
        self,
        compute: Callable[[], Tensor],
        cache: FeatureCache,
        found: Found,
        numbers: NDArray[np.int64],
    ) -> Tensor:
        """All rows; those that were missing are computed and kept."""
        if not len(found.missing):
            return found.features.to(self.device)
        fresh = compute()
        cache.put(numbers[found.missing], fresh)
        return found.completed(fresh)
