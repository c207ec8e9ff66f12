"""What `clipfast bench train` says: both trainers' rates, their ratio and its spread, memory."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from clipfast_bench.harness.machine import origin
from clipfast_bench.training.train_runs import Run
from rich import box
from rich.console import Console
from rich.table import Table


class Comparison(NamedTuple):
    """Of one model.

    Attributes:
        batch_size, steps: of each step, and timed in each round.
        parameters: that train.
        loss_difference: the largest relative one, on the same weights and batches.
        ours_with, theirs_with: the settings that were the best of those tried.
        ours, theirs: by round.
        ours_memory, theirs_memory: of runs of their own; peak_bytes is 0 where it is not known.
    """

    model: str
    batch_size: int
    steps: int
    parameters: int
    loss_difference: float
    ours_with: str
    theirs_with: str
    ours: list[Run]
    theirs: list[Run]
    ours_memory: Run
    theirs_memory: Run

    @property
    def ratios(self) -> list[float]:
        """By round: how many times our samples/s are theirs."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs.step_seconds / ours.step_seconds for ours, theirs in pairs]

    @property
    def whole_ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [theirs.whole_seconds / ours.whole_seconds for ours, theirs in pairs]

    @property
    def state_bytes(self) -> int:
        """float32 weights, gradients and AdamW's two moments, which both must hold."""
        return 16 * self.parameters

    def rate(self, runs: Sequence[Run]) -> float:
        """Samples/s, the median over the rounds."""
        return statistics.median(self.batch_size / run.step_seconds for run in runs)

    def beyond_state(self, memory: Run) -> int:
        return memory.peak_bytes - self.state_bytes


def as_json(data: str, cores: int, comparisons: Sequence[Comparison]) -> str:
    record = {
        **origin(),
        "cores": cores,
        "data": data,
        "comparisons": [
            comparison._asdict()
            | {
                name: [run._asdict() for run in getattr(comparison, name)]
                for name in ("ours", "theirs")
            }
            | {
                "ours_memory": comparison.ours_memory._asdict(),
                "theirs_memory": comparison.theirs_memory._asdict(),
                "ratios": comparison.ratios,
                "ratio": statistics.median(comparison.ratios),
            }
            for comparison in comparisons
        ],
    }
    return json.dumps(record, indent=1) + "\n"


def show(data: str, cores: int, comparisons: Sequence[Comparison]) -> None:
    console = Console(width=shutil.get_terminal_size((110, 40)).columns, highlight=False)
    console.print(
        f"Whole trainers, from shards to weights, in turn on {cores} cores, float32: {data}",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model")
    for column in ("batch", "clipfast", "open_clip_train", "ratio", "from – to", "whole run"):
        table.add_column(column, justify="right")
    for comparison in comparisons:
        ratios = comparison.ratios
        table.add_row(
            comparison.model,
            str(comparison.batch_size),
            f"{comparison.rate(comparison.ours):,.1f}/s",
            f"{comparison.rate(comparison.theirs):,.1f}/s",
            f"{statistics.median(ratios):.2f}×",
            f"{min(ratios):.2f} – {max(ratios):.2f}",
            f"{statistics.median(comparison.whole_ratios):.2f}×",
        )
    console.print(table)
    console.print(
        "samples/s of steady steps: medians over the rounds; ratio: of the pairs of a round"
    )
    for comparison in comparisons:
        for line in _remarks(comparison):
            console.print(line, soft_wrap=True)


def _remarks(comparison: Comparison) -> list[str]:
    lines = [
        f"{comparison.model}: {len(comparison.ours)} rounds of {comparison.steps} steps; the best "
        f"settings of those tried: clipfast {comparison.ours_with}; open_clip_train "
        f"{comparison.theirs_with}; losses on the same weights and batches differ by "
        f"{comparison.loss_difference:.1e}",
    ]
    memory = comparison.ours_memory, comparison.theirs_memory
    if all(run.peak_bytes for run in memory):
        ours, theirs = (_mib(comparison.beyond_state(run)) for run in memory)
        share = comparison.beyond_state(memory[0]) / comparison.beyond_state(memory[1])
        lines.append(
            f"{comparison.model}: memory at its peak, besides {_mib(comparison.state_bytes)} of "
            f"weights, gradients and optimizer state: {ours} and {theirs}, a share of {share:.2f}"
        )
    return lines


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
