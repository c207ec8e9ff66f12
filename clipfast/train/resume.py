"""Going on from a checkpoint: weights, optimizer and the place in the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from clipfast.data.sampler import Sampler
from clipfast.data.shards import ShardSet
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
    shards: ShardSet,
) -> tuple[Position, Sampler]:
    """Restores a run.

    Args:
        source: None starts afresh; "latest" is the furthest state or checkpoint in `folder`; else
            the path of one, ours or open_clip's. A bare state dict gives weights only.
        folder, engine, sampler, shards: this run's.

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
        sampler = _same_order(checkpoint["order"], sampler, shards, path)
    return position_of(checkpoint), sampler


def _same_order(order: dict[str, Any], sampler: Sampler, shards: ShardSet, path: Path) -> Sampler:
    """The sampler that the state was saved under."""
    if order["shards"] != shards.fingerprint:
        raise UserError(
            f"--resume {path}: expected the shards that the state was saved under, in their order; "
            f"got others, {len(shards.paths)} from {shards.paths[0]} on"
        )
    for name in ("batch_size", "seed"):
        if order[name] != getattr(sampler, name):
            raise UserError(
                f"--resume {path}: inside an epoch the order of the samples must stay the same; "
                f"expected {name.replace('_', ' ')} {order[name]}; got {getattr(sampler, name)}"
            )
    return dataclasses.replace(sampler, steps_per_epoch=order["steps_per_epoch"])
