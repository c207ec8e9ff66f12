"""From a batch to the features of both towers: computed, or read from a locked tower's cache.

B samples, D features.
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
from clipfast.models.precision import autocast, input_dtype


class Encoder:
    """Both towers' features, in the model's precision, handed on in float32.

    Args:
        model: ours or open_clip's.
        precision: open_clip's name.
        normalize: pixels to the image tower's input, on its device.
        device: the model's.
        caches: read, and filled with what they lack.
        compiled: compute by ``torch.compile``.
    """

    def __init__(
        self,
        model: Any,
        *,
        precision: str,
        normalize: Normalize,
        device: torch.device,
        caches: Caches,
        compiled: bool,
    ) -> None:
        self.precision, self.normalize, self.device = precision, normalize, device
        self.caches = caches
        self._image: Callable[..., Tensor] = model.encode_image
        self._text: Callable[..., Tensor] = model.encode_text
        self._text_head: Callable[[Tensor], Tensor] = torch.nn.Identity()
        if caches.text is not None and isinstance(model, TwoTowers):
            self._text, self._text_head = model.text_trunk, model.text_head
        if compiled:
            self._image = torch.compile(self._image)
            # Captions are packed: each batch has its own number of tokens.
            self._text = torch.compile(self._text, dynamic=True)

    def image(self, batch: Batch) -> Tensor:
        """(B, D) float32."""
        with autocast(self.device, self.precision):
            if self.caches.image is None or batch.image_found is None:
                return self._encode_images(batch).float()
            return self._cached(
                lambda: self._encode_images(batch),
                self.caches.image,
                batch.image_found,
                batch.numbers,
            )

    def text(self, batch: Batch) -> Tensor:
        """(B, D) float32."""
        with autocast(self.device, self.precision):
            if self.caches.text is None or batch.text_found is None:
                return self._encode_text(batch).float()
            x = self._cached(
                lambda: self._encode_text(batch), self.caches.text, batch.text_found, batch.numbers
            )
            return self._text_head(x.to(input_dtype(self.precision))).float()

    def _encode_images(self, batch: Batch) -> Tensor:
        return self._image(self.normalize(batch.images).to(input_dtype(self.precision)))

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
