"""Going on from a checkpoint: weights, optimizer, random numbers and the place in the data."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.data.sampler import Order, Sampler, order_of
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.storage import Storage, is_remote
from clipfast.ranks.agreement import by_main, refuse
from clipfast.ranks.world import World
from clipfast.train.checkpoints.epochs import OPEN_CLIP
from clipfast.train.checkpoints.finding import Saved, check, furthest_whole, saved_at
from clipfast.train.checkpoints.foreign import read_foreign
from clipfast.train.checkpoints.random_states import restore_random_state
from clipfast.train.checkpoints.remote_sync import RemoteSync
from clipfast.train.checkpoints.run_folder import Position, RunFolder
from clipfast.train.checkpoints.states import RUN_FILE
from clipfast.train.engines.engine import Engine
from clipfast.weights.checkpoint import read_checkpoint, read_dict

logger = logging.getLogger("clipfast.train")


class Resumed(NamedTuple):
    """Attributes:
    position: what is done already.
    sampler: to go on with. It has the steps per epoch of the run's first start, whatever
        ``--workers`` says now; a checkpoint of open_clip's own has no place for them.
    content: what the loop had saved besides; empty after a checkpoint of open_clip's own.
    source: the checkpoint; None for a run that starts afresh.
    """

    position: Position
    sampler: Sampler
    content: dict[str, Any]
    source: Path | None


def resume(
    args: argparse.Namespace,
    folder: RunFolder,
    world: World,
    engine: Engine,
    sampler: Sampler,
    samples: SampleSet,
) -> Resumed:
    """Restores a run as ``--resume`` says. Collective.

    Args:
        args: resume is None for a run that starts afresh; "latest" for the furthest whole
            checkpoint in `folder`, or at --remote-sync where there is a newer one, or a fresh start
            where there is none yet; else the path or URL of one, ours or open_clip's. A bare state
            dict gives weights only.
        folder, world, engine, sampler, samples: this run's.

    Raises:
        UserError: no such checkpoint, one that is damaged or does not fit the model, or a state
            that was saved under other data, batch size, seed or engine.
    """
    saved = find_checkpoint(args, folder, world)
    if saved is None:
        return Resumed(Position(0, 0), sampler, {}, None)
    content = _run_content(saved)
    position = _load(saved, world, engine, args)
    if content:
        restore_random_state(
            content.pop("random_states"),
            world,
            seed=args.seed,
            global_step=content.pop("global_step"),
        )
    if "order" in content:
        sampler = _order_kept(content.pop("order"), sampler, samples, saved, args, world)
    return Resumed(position, sampler, content, saved.path)


def find_checkpoint(args: argparse.Namespace, folder: RunFolder, world: World) -> Saved | None:
    """What ``--resume`` names, None for a fresh start. Collective.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if args.resume is None:
        return None
    if args.resume == "latest":
        if (remote := RemoteSync.of(args, folder)) is not None:
            by_main(world, remote.fetch)
        found = furthest_whole(folder, world)
        if found is None and world.is_main:
            logger.warning(f"--resume latest: no checkpoint in {folder.path} yet; starting afresh")
        return found
    path = Path(args.resume)
    if is_remote(args.resume):
        cache = Path(args.data_cache) if args.data_cache else None
        path = Storage(cache, args.data_cache_gb).local(args.resume)
    saved = by_main(world, lambda: saved_at(path))._replace(path=path)
    if saved.manifest is not None:
        check(saved, world)
    return saved


def _run_content(saved: Saved) -> dict[str, Any]:
    """What ``run.pt`` holds; nothing beside a checkpoint of open_clip's own, or an old one."""
    if saved.manifest is None or saved.folder is None or RUN_FILE not in saved.manifest.files:
        return {}
    content = read_dict(saved.folder / RUN_FILE)
    del content["position"]
    return content


def _load(saved: Saved, world: World, engine: Engine, args: argparse.Namespace) -> Position:
    """Gives the engine its state, or what there is of it; returns what is done already."""
    where = str(saved.path)
    if saved.manifest is not None and saved.path.is_dir():
        if saved.manifest.engine != engine.name:
            refuse(
                world,
                f"--resume {where}: expected a state that the {engine.name} engine wrote; got one "
                f"of the {saved.manifest.engine} engine; go on from a checkpoints/epoch_N.pt, "
                "which every engine reads",
            )
        engine.restore(saved.path, saved.manifest.world_size, where)
        return saved.position
    if saved.path.is_dir():
        checkpoint = read_foreign(saved.path, trusted=args.trust_checkpoint)
    else:
        checkpoint = read_checkpoint(saved.path)
    engine.load_checkpoint(checkpoint, where)
    return Position(checkpoint.get("epoch", 0), 0)


def order_state(sampler: Sampler, samples: SampleSet) -> dict[str, Any]:
    """What a state keeps, so that the samples of every later step are the same."""
    return {"samples": samples.fingerprint} | dataclasses.asdict(sampler.order)


def _order_kept(
    state: dict[str, Any],
    sampler: Sampler,
    samples: SampleSet,
    saved: Saved,
    args: argparse.Namespace,
    world: World,
) -> Sampler:
    """The sampler that the checkpoint was saved under; between two epochs, another may follow."""
    order = order_of(state)
    other = _other_samples(state, samples) or _other_order(order, sampler, args)
    if other is None:
        return Sampler(sampler.shards, order, sampler.rank, sampler.world_size)
    if saved.manifest is None or saved.manifest.engine != OPEN_CLIP:
        refuse(
            world,
            f"--resume {saved.path}: inside an epoch the order of the samples must stay the same; "
            f"{other}",
        )
    logger.info(f"{saved.path}: the order of the samples changes: {other}")
    return sampler


def _other_samples(state: dict[str, Any], samples: SampleSet) -> str | None:
    if state.get("samples") == samples.fingerprint:
        return None
    return (
        "expected the samples that the state was saved under, in their order; got others, "
        f"{len(samples):,} from {samples.sources[0].name} on"
    )


def _other_order(order: Order, sampler: Sampler, args: argparse.Namespace) -> str | None:
    if (misfit := order.misfit(sampler.world_size)) is not None:
        return misfit
    now = sampler.order
    if order.batch_size != now.batch_size:
        return _other_batch(order.batch_size, sampler.world_size, args)
    for name, flag in (
        ("seed", "seed"),
        ("drawing", "--dataset-resampled and --train-data-upsampling-factors"),
    ):
        if getattr(order, name) != getattr(now, name):
            return f"expected {flag} {getattr(order, name)}; got {getattr(now, name)}"
    return None


def _other_batch(batch_size: int, world_size: int, args: argparse.Namespace) -> str:
    """Says which flags would make the batches those of before."""
    ways = []
    for flag, now, other in (
        ("--batch-size", args.batch_size, args.accum_freq),
        ("--accum-freq", args.accum_freq, args.batch_size),
    ):
        fitting, rest = divmod(batch_size, other * world_size)
        if rest == 0 and fitting not in (0, now):
            ways.append(f"{flag} {fitting}")
    how = f"; {' or '.join(ways)} would do" if ways else ""
    return (
        f"expected a global batch of {batch_size}; got {args.batch_size} (--batch-size) × "
        f"{args.accum_freq} (--accum-freq) × {world_size} (processes){how}"
    )
