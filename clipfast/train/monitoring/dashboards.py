"""TensorBoard and Weights & Biases, with the tags and keys of open_clip 3.3.0."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from clipfast.errors import UserError

DASHBOARDS = ("tensorboard", "wandb")


class Dashboard(Protocol):
    """Attributes:
    name: what the log calls it.
    """

    name: str

    def step(self, global_step: int, scalars: Mapping[str, float]) -> None:
        """Shows a training step, under ``train/``."""

    def evaluated(self, epochs_done: int, global_step: int, metrics: Mapping[str, float]) -> None:
        """Shows what an evaluation measured, under ``val/``."""

    def close(self) -> None: ...


def asked_for(report_to: str) -> tuple[str, ...]:
    """The dashboards that a `--report-to` names.

    Raises:
        UserError: it names another.
    """
    words = [word.strip() for word in report_to.split(",") if word.strip()]
    for word in words:
        if word not in (*DASHBOARDS, "all"):
            raise UserError(
                f"--report-to: expected {', '.join(DASHBOARDS)}, all, or several of them joined by "
                f"commas; got {report_to!r}"
            )
    return tuple(name for name in DASHBOARDS if name in words or "all" in words)


def open_dashboards(
    args: argparse.Namespace, folder: Path, *, samples: int, global_step: int
) -> list[Dashboard]:
    """Args:
        folder: the run's, whose params.txt is there.
        samples: of an epoch.
        global_step: where the run begins or goes on.

    Raises:
        UserError: the package of one is missing, or it refuses.
    """
    opened: list[Dashboard] = []
    names = asked_for(args.report_to)
    if "tensorboard" in names:
        opened.append(TensorBoard(folder / "tensorboard", global_step))
    if "wandb" in names:
        opened.append(WeightsAndBiases(args, folder, samples))
    return opened


class TensorBoard:
    """Args:
    folder: of its event files.
    global_step: later steps that an earlier start of the run has written are hidden.
    """

    name = "tensorboard"

    def __init__(self, folder: Path, global_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second

        self._writer = SummaryWriter(str(folder), purge_step=global_step or None)

    def step(self, global_step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(f"train/{name}", value, global_step)

    def evaluated(self, epochs_done: int, global_step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"val/{name}", value, epochs_done)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Args:
        args: the run's configuration there.
        folder: the run's.
        samples: of an epoch.

    Raises:
        UserError: wandb is not installed.
    """

    name = "wandb"

    def __init__(self, args: argparse.Namespace, folder: Path, samples: int) -> None:
        self._wandb = _import_wandb()
        self._wandb.init(
            project=args.wandb_project_name,
            name=args.name,
            id=args.name,
            notes=args.wandb_notes,
            tags=[],
            resume="auto" if args.resume == "latest" else None,
            config=vars(args) | {"train_sz": samples},
        )
        self._wandb.save(str(folder / "params.txt"))

    def watch(self, model: Any) -> None:
        """Shows gradients and weights too."""
        self._wandb.watch(model, log="all")

    def step(self, global_step: int, scalars: Mapping[str, float]) -> None:
        values = {f"train/{name}": value for name, value in scalars.items()}
        self._wandb.log(values | {"step": global_step}, step=global_step)

    def evaluated(self, epochs_done: int, global_step: int, metrics: Mapping[str, float]) -> None:
        values = {f"val/{name}": value for name, value in metrics.items()}
        self._wandb.log(values | {"epoch": epochs_done}, step=global_step)

    def close(self) -> None:
        self._wandb.finish()


def _import_wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"--report-to wandb: expected the package wandb (pip install wandb); got: {error}"
        ) from None
    return wandb
