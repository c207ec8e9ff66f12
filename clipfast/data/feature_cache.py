"""Features of a locked tower on disk, computed once and read in every later epoch and run.

B samples, D features.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.errors import UserError

_VERSION = 1
_ABOUT, _FEATURES, _CHECKSUMS = "about.json", "features.f32", "checksums.u32"


class Found(NamedTuple):
    """What of a batch's features a cache has.

    Attributes:
        features: (B, D) float32; rows in `missing` are unset. D is 0 in a cache without a row yet.
        missing: (M,) int64, the places in the batch that it lacks, ascending.
    """

    features: Tensor
    missing: NDArray[np.int64]

    def completed(self, fresh: Tensor) -> Tensor:
        """(B, D) float32: all rows, with the (M, D) missing ones, on their device."""
        if len(fresh) == len(self.features):
            return fresh.float()
        features = self.features.to(fresh.device)
        features[torch.from_numpy(self.missing).to(fresh.device)] = fresh.float()
        return features


def gather(rows: Sequence[NDArray[np.float32] | None]) -> Found:
    """A batch's rows as `FeatureCache.get` gave them."""
    missing = np.array([place for place, row in enumerate(rows) if row is None], np.int64)
    width = max((len(row) for row in rows if row is not None), default=0)
    blank = np.zeros(width, np.float32)
    features = np.stack([blank if row is None else row for row in rows])
    return Found(torch.from_numpy(features), missing)


class FeatureCache:
    """Rows of float32 features by sample number, in files of ``DIR/KIND-DIGEST/``.

    ``features.f32`` holds (samples, D) in row order, ``checksums.u32`` each row's CRC-32, or 0
    where there is none. A row counts only with its checksum, so one that a crash cut short, or that
    the disk never got, is missing and no more; several processes may fill a cache at once.

    Args:
        folder: DIR, of all caches.
        kind: what the features are of: "image" or "text".
        samples: how many rows there are.
        key: what features depend on. Caches of another key lie in folders of another name.

    Raises:
        UserError: the cache is damaged.
    """

    def __init__(self, folder: Path, kind: str, *, samples: int, key: Mapping[str, str]) -> None:
        self.kind, self.samples = kind, samples
        self._about = {"version": _VERSION, "kind": kind, "samples": samples, "key": dict(key)}
        digest = hashlib.sha256(json.dumps(self._about, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{kind}-{digest[:16]}"
        self._files: _Files | None = None
        self._opening = threading.Lock()
        if self.path.exists():
            self._files = self._open()

    @property
    def filled(self) -> int:
        """How many rows are there."""
        return 0 if self._files is None else int(np.count_nonzero(self._files.checksums))

    def get(self, number: int) -> NDArray[np.float32] | None:
        """(D,), or None; safe from several threads."""
        if self._files is None or not (checksum := self._files.checksums[number]):
            return None
        row = np.array(self._files.features[number])
        return row if _checksum(row) == checksum else None

    def put(self, numbers: NDArray[np.int64], features: Tensor) -> None:
        """Keeps (B, D) features under their sample numbers; those that are not finite it does not.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        rows = features.detach().float().cpu().contiguous().numpy()
        files = self._files_for(rows.shape[1])
        for number, row in zip(numbers.tolist(), rows, strict=True):
            if np.isfinite(row).all():
                files.write(number, row)

    def _files_for(self, width: int) -> _Files:
        if self._files is None:
            with self._opening:
                self._create(width)
                self._files = self._open()
        if self._files.width != width:
            raise ValueError(f"features: expected width {self._files.width}; got {width}")
        return self._files

    def _create(self, width: int) -> None:
        """Under its name at once and whole; one that another process has made meanwhile serves."""
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, size in _sizes(self.samples, width).items():
                with open(partial / name, "wb") as file:
                    file.truncate(size)
            (partial / _ABOUT).write_text(json.dumps(self._about | {"width": width}, indent=1))
            partial.rename(self.path)
        except OSError:
            if not self.path.is_dir():
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _open(self) -> _Files:
        try:
            about = json.loads((self.path / _ABOUT).read_text())
            width = int(about.pop("width"))
            whole = about == self._about and all(
                (self.path / name).stat().st_size == size
                for name, size in _sizes(self.samples, width).items()
            )
        except (OSError, ValueError, KeyError, AttributeError):
            whole = False
        if not whole:
            raise UserError(
                f"feature cache {self.path}: expected {_ABOUT}, {_FEATURES} and "
                f"{_CHECKSUMS} of {self.samples} rows; got a damaged cache: remove the folder, "
                "and it is made anew"
            )
        return _Files(self.path, self.samples, width)


class _Files:
    """Reads by memory map. Writes by calls, of which a full disk makes an OSError and no signal."""

    def __init__(self, path: Path, samples: int, width: int) -> None:
        self.width = width
        self.features = np.memmap(path / _FEATURES, "<f4", "r", shape=(samples, width))
        self.checksums = np.memmap(path / _CHECKSUMS, "<u4", "r", shape=(samples,))
        self._features_out = open(path / _FEATURES, "r+b", buffering=0)  # noqa: SIM115, kept open
        self._checksums_out = open(path / _CHECKSUMS, "r+b", buffering=0)  # noqa: SIM115

    def write(self, number: int, row: NDArray[np.float32]) -> None:
        content = row.astype("<f4").tobytes()
        os.pwrite(self._features_out.fileno(), content, number * len(content))
        checksum = np.array(_checksum(row), "<u4").tobytes()
        os.pwrite(self._checksums_out.fileno(), checksum, number * len(checksum))


def _sizes(samples: int, width: int) -> dict[str, int]:
    return {_FEATURES: 4 * samples * width, _CHECKSUMS: 4 * samples}


def _checksum(row: NDArray[np.float32]) -> int:
    return zlib.crc32(row.astype("<f4", copy=False).tobytes()) or 1


def fingerprint(state: Mapping[str, Tensor], description: str) -> str:
    """Tells towers apart whose features differ.

    Args:
        state: weights and statistics by name.
        description: what else they are computed by.
    """
    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
