"""Going on from a checkpoint: weights, optimizer and the place in the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from clipfast.data.sampler import Sampler, order_of
from clipfast.data.sources.sample_set import SampleSet
from clipfast.errors import UserError
from clipfast.train.engine import PlainEngine
from clipfast.train.run_folder import Position, RunFolder, position_of
from clipfast.weights.checkpoint import read_checkpoint
from clipfast.weights.loading import load_weights


def resume(
    source: str | None,
    folder: RunFolder,
    engine: PlainEngine,
    sampler: Sampler,
    samples: SampleSet,
) -> tuple[Position, Sampler]:
    """Restores a run.

    Args:
        source: None starts afresh; "latest" is the furthest state or checkpoint in `folder`; else
            the path of one, ours or open_clip's. A bare state dict gives weights only.
        folder, engine, sampler, samples: this run's.

    Returns:
        What is done already, and the sampler to go on with. A state brings the steps per epoch of
        the run's first start, whatever `--workers` says now; an epoch's checkpoint, which is in
        open_clip's form, has no place for them.

    Raises:
        UserError: no such checkpoint, one that does not fit the model, or a state that was saved
            under other data, batch size or seed.
    """
    if source is None:
        return Position(0, 0), sampler
    path = folder.newest() if source == "latest" else Path(source)
    if path.is_dir():
        path = path / "state.pt"
    checkpoint = read_checkpoint(path)
    load_weights(engine.model, checkpoint["state_dict"], str(path), resize=False)
    engine.load_training_state(checkpoint, str(path))
    if "torch_rng" in checkpoint:
        torch.set_rng_state(checkpoint["torch_rng"])
    if "order" in checkpoint:
        sampler = _same_order(checkpoint["order"], sampler, samples, path)
    return position_of(checkpoint), sampler


def order_state(sampler: Sampler, samples: SampleSet) -> dict[str, Any]:
    """What a state keeps, so that the samples of every later step are the same."""
    return {"samples": samples.fingerprint} | dataclasses.asdict(sampler.order)


def _same_order(state: dict[str, Any], sampler: Sampler, samples: SampleSet, path: Path) -> Sampler:
    """The sampler that the state was saved under."""
    if state.get("samples") != samples.fingerprint:
        raise UserError(
            f"--resume {path}: expected the samples that the state was saved under, in their "
            f"order; got others, {len(samples):,} from {samples.sources[0].name} on"
        )
    order = order_of(state)
    for name, flag in (
        ("batch_size", "batch size"),
        ("seed", "seed"),
        ("drawing", "--dataset-resampled and --train-data-upsampling-factors"),
    ):
        if getattr(order, name) != getattr(sampler.order, name):
            raise UserError(
                f"--resume {path}: inside an epoch the order of the samples must stay the same; "
                f"expected {flag} {getattr(order, name)}; got {getattr(sampler.order, name)}"
            )
    return Sampler(sampler.shards, order, sampler.rank, sampler.world_size)
