"""Where log lines go: above the progress bar, to out.log, and on request to a file per machine."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from clipfast.ranks.world import World

# Of every module here, and of the trainer's own lines.
ROOT = logging.getLogger("clipfast")


@contextmanager
def log_lines_written(
    args: argparse.Namespace, folder: Path, world: World, console: Console
) -> Iterator[None]:
    """Inside it, rank 0 writes out.log and prints; others do neither. With `--log-local` the first
    rank of each machine writes ``out-RANK``, as open_clip does."""
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if world.is_main:
        handlers = [_File(folder / "out.log"), _Console(console)]
    if args.log_local and world.local_rank == 0 and not world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        handlers = [_File(folder / f"out-{world.rank}")]
    form = logging.Formatter("%(asctime)s | %(levelname)s | %(message)s", "%Y-%m-%d,%H:%M:%S")
    before = ROOT.level, ROOT.propagate
    ROOT.setLevel(logging.DEBUG if args.debug else logging.INFO)
    ROOT.propagate = False
    for handler in handlers:
        handler.setFormatter(form)
        ROOT.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            ROOT.removeHandler(handler)
            handler.close()
        ROOT.setLevel(before[0])
        ROOT.propagate = before[1]


class _File(logging.FileHandler):
    """Appends. Lines that a full disk refuses are lost, which is no reason to lose the run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the lines are on the terminal too."""


class _Console(logging.Handler):
    """Prints log lines above the progress bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(self.format(record), style=style, markup=False, soft_wrap=True)
