"""From the flags that name the data to its samples."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from clipfast.data.sources.folder import FolderSource
from clipfast.data.sources.hf_dataset import HFDatasetSource
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.samples import Source
from clipfast.data.sources.shard_names import split_sources
from clipfast.data.sources.storage import Storage, is_remote
from clipfast.data.sources.synthetic import SyntheticSource
from clipfast.data.sources.tables import CsvSource, ParquetSource
from clipfast.data.sources.tar_source import TarSource
from clipfast.errors import UserError

DATASET_TYPES = ("webdataset", "csv", "parquet", "folder", "hf", "synthetic")
_SYNTHETIC_SIDE = 224
# Of tables; tars are read at any place, which a compressed one cannot be.
_COMPRESSED = re.compile(r"(?<=.[ct]sv)\.(gz|bz2|xz|zip|zst)$")
_IMAGE_COLUMN, _CAPTION_COLUMN = "filepath", "title"


def add_source_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flags that `open_samples` reads, but for the one that names the data itself."""
    add = parser.add_argument
    add(
        "--dataset-type",
        choices=[*DATASET_TYPES, "auto"],
        default="auto",
        help="auto goes by the names: .tar, .csv or .tsv, .parquet, or what a folder holds",
    )
    add("--csv-separator", default="\t", metavar="CHARACTER", help="default: a tab")
    add(
        "--csv-img-key",
        default=_IMAGE_COLUMN,
        metavar="COLUMN",
        help="of the images, in Parquet and Hugging Face data too (default: filepath; elsewhere "
        "than in a CSV, whichever column holds images)",
    )
    add(
        "--csv-caption-key",
        default=_CAPTION_COLUMN,
        metavar="COLUMN",
        help="of the captions (default: title; elsewhere than in a CSV, a usual name)",
    )
    add(
        "--caption-key",
        metavar="FIELD",
        help="the field of a sample's .json that holds its caption or captions",
    )
    add(
        "--data-cache",
        metavar="DIR",
        help="where files of remote URLs are kept (default: ~/.cache/clipfast/data)",
    )
    add("--data-cache-gb", type=float, default=50.0, metavar="GB", help="at most (default 50)")


def open_samples(
    args: argparse.Namespace,
    data: str | None,
    *,
    flag: str = "--train-data",
    factors: str | None = None,
    resampled: bool = False,
    epoch_samples: int | None = None,
) -> SampleSet:
    """Opens all sources that are joined by ``::``.

    Args:
        args: with what `add_source_flags` adds.
        data: paths, URLs and brace lists.
        flag: which named them, for errors.
        factors: how often each source's samples are drawn beside the others', joined by ``::``.
        resampled: draw with replacement.
        epoch_samples: how many a synthetic set has.

    Raises:
        UserError: a source that is missing or holds nothing, or flags that do not fit together.
    """
    if args.dataset_type == "synthetic":
        return SampleSet([_synthetic(epoch_samples)])
    if not data:
        raise UserError(f"{flag}: expected a path, a brace list or a URL; got none")
    names = split_sources(data)
    weights = _factors(factors, len(names), resampled=resampled)
    cache = Path(args.data_cache) if args.data_cache else None
    storage = Storage(cache, args.data_cache_gb)
    sources = [_opener(args, name, flag)(args, name, storage) for name in names]
    return SampleSet(sources, weights)


def _synthetic(samples: int | None) -> Source:
    if samples is None:
        raise UserError("--dataset-type synthetic: expected --train-num-samples; got none")
    return SyntheticSource(samples, _SYNTHETIC_SIDE)


def _factors(factors: str | None, sources: int, *, resampled: bool) -> list[float] | None:
    flag = "--train-data-upsampling-factors"
    if factors is None:
        return [1.0] * sources if resampled else None
    if not resampled:
        raise UserError(f"{flag}: expected --dataset-resampled with it; got {factors!r} alone")
    try:
        weights = [float(factor) for factor in factors.split("::")]
    except ValueError:
        raise UserError(f"{flag}: expected numbers joined by ::; got {factors!r}") from None
    if (
        len(weights) != sources
        or not all(0 <= w < float("inf") for w in weights)
        or not any(weights)
    ):
        raise UserError(
            f"{flag}: expected {sources} numbers, one for each source, from 0 on and not all 0; "
            f"got {factors!r}"
        )
    return weights


_Open = Callable[[argparse.Namespace, str, Storage], Source]

_OPEN: dict[str, _Open] = {
    "webdataset": lambda args, name, storage: TarSource(
        name, storage, prefer_json=args.caption_key is not None
    ),
    "csv": lambda args, name, storage: CsvSource(
        name,
        storage,
        separator=args.csv_separator,
        image_key=args.csv_img_key,
        caption_key=args.csv_caption_key,
    ),
    "parquet": lambda args, name, storage: ParquetSource(name, storage, **_columns(args)),
    "folder": lambda args, name, storage: FolderSource(
        name, prefer_json=args.caption_key is not None
    ),
    "hf": lambda args, name, storage: HFDatasetSource(name, **_columns(args)),
}


def _columns(args: argparse.Namespace) -> dict[str, str | None]:
    """The columns that were asked for; others are found."""
    image, caption = args.csv_img_key, args.csv_caption_key
    return {
        "image_key": None if image == _IMAGE_COLUMN else image,
        "caption_key": None if caption == _CAPTION_COLUMN else caption,
    }


def _opener(args: argparse.Namespace, name: str, flag: str) -> _Open:
    kind = args.dataset_type
    return _OPEN[_kind_of(name, flag) if kind == "auto" else kind]


def _kind_of(name: str, flag: str = "--train-data") -> str:
    """By the ending, or by what the folder holds."""
    ending = _COMPRESSED.sub("", name.lower()).rpartition(".")[2]
    for kind, endings in (
        ("webdataset", ("tar",)),
        ("csv", ("csv", "tsv")),
        ("parquet", ("parquet",)),
    ):
        if ending in endings:
            return kind
    folder = Path(name)
    if not is_remote(name) and folder.is_dir():
        if any((folder / file).exists() for file in ("dataset_dict.json", "state.json")):
            return "hf"
        tars = sorted(folder.glob("*.tar"))
        if tars:
            raise UserError(
                f"{flag} {name}: expected the shards themselves; got their folder, which "
                f"holds {len(tars)}, first {tars[0].name}: name them by a brace list such as "
                f"'{name.rstrip('/')}/{tars[0].name[:-4]}.tar'"
            )
        return "parquet" if any(folder.glob("*.parquet")) else "folder"
    if "." not in name.rpartition("/")[2] and not is_remote(name):
        raise UserError(f"{flag} {name}: no such file or folder")
    raise UserError(
        f"{flag} {name}: expected a name that ends in .tar, .csv, .tsv or .parquet, or a "
        f"folder; say which it is by --dataset-type ({', '.join(DATASET_TYPES)})"
    )
