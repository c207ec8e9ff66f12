"""What `clipfast bench` measured, in the place of assumptions."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.errors import UserError
from clipfast.models.precision import computed_dtype
from clipfast.plan.counting import flops
from clipfast.plan.hardware import Gpu
from clipfast.plan.published import Range
from clipfast.plan.towers import PlannedModel

_STEP, _LOADER = "train_step", "loader"


class Measured(NamedTuple):
    """Attributes:
    value: None where the file has none that holds here.
    source: where it comes from, or why there is none.
    """

    value: float | Range | None
    source: str


class Calibration(NamedTuple):
    """Attributes:
    utilisation: a `Range`: the share of the GPU's peak that measured steps reached.
    decode_rate: images/s of one core.
    image_kb: of a sample as it is stored.
    """

    utilisation: Measured
    decode_rate: Measured
    image_kb: Measured


def read_calibration(path: Path, gpu: Gpu, precision: str) -> Calibration:
    """Of a file that `clipfast bench --json` or `clipfast bench feed --json` wrote.

    Steps count that were timed on such a GPU, in this precision: on another they say nothing of
    this one. Decoding counts wherever it was timed.

    Args:
        precision: of the training that is planned.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    name = f"--calibration {path}"
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{name}: expected JSON of `clipfast bench`; {error}") from None
    if isinstance(record, dict) and "feedings" in record:
        return _of_feed(record, path)
    if not isinstance(record, dict) or not isinstance(record.get("benchmarks"), list):
        raise UserError(f"{name}: expected a file that `clipfast bench --json` wrote")
    machine = record.get("machine_info") or {}
    rows = record["benchmarks"]
    try:
        return Calibration(
            _utilisation(rows, machine, gpu, precision, path),
            _decoding(rows, machine, path),
            Measured(None, f"{path.name} has no samples of your data"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: expected rows of `clipfast bench`; got none in {error}") from None


def _of_feed(record: dict[str, Any], path: Path) -> Calibration:
    rates = [f["images_per_core_second"] for f in record["feedings"] if f["device"] == "cpu"]
    best = max(rates, default=None)
    said = f"measured by `clipfast bench feed` ({path.name})"
    return Calibration(
        Measured(None, f"{path.name} has no training steps"),
        Measured(best, said if best else f"{path.name} has no decoding on a CPU"),
        Measured(record["reading"]["bytes_per_sample"] / 1e3, said),
    )


def _utilisation(rows: list[dict], machine: dict, gpu: Gpu, precision: str, path: Path) -> Measured:
    computed = computed_dtype(precision)
    dtype, peak = str(computed).removeprefix("torch."), gpu.peak(computed.itemsize)
    steps = [row for row in rows if _op(row) == _STEP]
    if not steps:
        return Measured(None, f"{path.name} has no row of op {_STEP}")
    where = machine.get("gpu") or "a CPU"
    if gpu.name.partition("-")[0] not in where:
        return Measured(None, f"{path.name}: steps of {where}, which say nothing of {gpu.name}")
    of_dtype = [row for row in steps if row["extra_info"].get("dtype") == dtype]
    if not of_dtype:
        return Measured(None, f"{path.name}: no step in {dtype}")
    shares = [_flops_per_second(row) / peak for row in of_dtype]
    found = Range(statistics.geometric_mean(shares), min(shares), max(shares))
    return Measured(found, f"measured on {where}, {len(shares)} steps of one GPU ({path.name})")


def _flops_per_second(row: dict[str, Any]) -> float:
    params, extra = row["params"], row["extra_info"]
    name = params.get("model") or params["name"]
    batch = params.get("batch_size") or params["batch"]
    tokens = extra.get("mean_tokens") or extra["figures"]["mean_tokens"]
    return batch * flops(PlannedModel(name), tokens).step / row["stats"]["median"]


def _decoding(rows: list[dict], machine: dict, path: Path) -> Measured:
    rates = list(_rates(rows))
    if not rates:
        return Measured(None, f"{path.name} has no row of op {_LOADER}")
    cpu = (machine.get("cpu") or {}).get("brand_raw") or "a CPU"
    how = f"the median of {len(rates)} kinds of images" if len(rates) > 1 else "its images"
    return Measured(statistics.median(rates), f"measured on {cpu}, one core, {how} ({path.name})")


def _rates(rows: list[dict]) -> Iterator[float]:
    for row in rows:
        figures = row["extra_info"].get("figures") or {}
        if _op(row) == _LOADER and "images/s" in figures:
            yield figures["images/s"]


def _op(row: dict[str, Any]) -> str:
    """Older files have it in the name alone: ``test_train_step[ViT-B-32-32-7]``."""
    op: str = row["extra_info"].get("op") or re.sub(r"^test_|\[.*", "", row["name"])
    return op
