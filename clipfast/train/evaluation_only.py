"""A run without training data: it evaluates a model once, as open_clip's trainer does."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from typing import Any

from rich.console import Console

import clipfast
from clipfast.errors import UserError
from clipfast.ranks.agreement import by_main
from clipfast.ranks.world import World
from clipfast.train import model
from clipfast.train.checkpoints.resume import find_checkpoint
from clipfast.train.checkpoints.run_folder import RunFolder, default_name
from clipfast.train.evaluation import make_evaluator, write_results
from clipfast.train.monitoring.dashboards import open_dashboards
from clipfast.train.monitoring.log_files import log_lines_written
from clipfast.train.monitoring.log_line import evaluation_line
from clipfast.train.monitoring.summary import aligned, facts_of
from clipfast.weights.checkpoint import read_checkpoint
from clipfast.weights.loading import load_weights

logger = logging.getLogger("clipfast.train")


def evaluate_only(args: argparse.Namespace, world: World) -> tuple[Any, RunFolder]:
    """Evaluates what ``--pretrained`` or ``--resume`` names. Collective.

    Returns:
        The model, in eval mode, and the run's folder.

    Raises:
        UserError: a mistake in flags, data or checkpoint.
        OSError: the run's folder cannot be written.
    """
    if args.zero_stage is not None:
        raise UserError(
            f"--zero-stage {args.zero_stage}: expected --train-data with it; got none, and an "
            "evaluation alone has the whole model in each process"
        )
    evaluator = make_evaluator(args, world)
    assert evaluator is not None
    net = model.make_model(args, world.device, world.group)
    args.name = world.from_main(args.name or default_name(args))
    folder = by_main(world, lambda: RunFolder(args.logs, args.name, resume=args.resume == "latest"))
    epochs_done = _load(args, folder, world, net)
    by_main(world, lambda: folder.create(args))
    console = Console(stderr=True, highlight=False)
    with ExitStack() as parts:
        parts.enter_context(log_lines_written(args, folder.path, world, console))
        lines = [*model.describe(args, net, world.device), *evaluator.describe()]
        logger.info(aligned(f"clipfast {clipfast.__version__}", facts_of(lines)))
        metrics = evaluator(net, epochs_done)
        logger.info(evaluation_line(epochs_done, metrics))
        if world.is_main:
            write_results(metrics, folder.checkpoints)
            for dashboard in open_dashboards(args, folder.path, samples=0, global_step=0):
                parts.callback(dashboard.close)
                dashboard.evaluated(epochs_done, epochs_done, metrics)
    return net.eval(), folder


def _load(args: argparse.Namespace, folder: RunFolder, world: World, net: Any) -> int:
    """The epochs that the weights were trained for."""
    saved = find_checkpoint(args, folder, world)
    if saved is None:
        return 0
    if saved.path.is_dir():
        raise UserError(
            f"--resume {args.resume}: expected a checkpoint in open_clip's form to evaluate, such "
            f"as {folder.checkpoints}/epoch_1.pt; got the state {saved.path}"
        )
    checkpoint = read_checkpoint(saved.path)
    load_weights(net, checkpoint["state_dict"], str(saved.path), resize=False)
    return saved.position.epoch
