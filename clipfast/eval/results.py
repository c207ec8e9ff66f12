"""Results as rows: JSON lines under CLIP_benchmark's names, a table for the terminal, and published
figures beside our own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

import clipfast
from clipfast.errors import UserError
from clipfast.eval.published import Published, published
from clipfast.models.config import plain_name

FILE_NAME = "results.jsonl"
# Ours on the command line to CLIP_benchmark's in rows; it has no names for the last two.
TASKS = {
    "zero-shot": "zeroshot_classification",
    "linear-probe": "linear_probe",
    "retrieval": "zeroshot_retrieval",
    "few-shot": "few_shot",
    "robustness": "robustness",
}
NOTE = (
    "Published figures are of their own weights, data and sentences; they are for orientation, "
    "not as a comparison."
)
_PROBE_PREFIX = "lp_"  # CLIP_benchmark's, before the metrics of a linear probe
_MOST_BESIDE = 4  # published figures of one metric in the table


class Picture(NamedTuple):
    """Attributes:
    file: its name in the folder of the results.
    title: what is shown.
    alt: the same for who cannot see it.
    """

    file: str
    title: str
    alt: str


@dataclass(frozen=True)
class Result:
    """What a model comes to on a suite, in one task.

    Attributes:
        suite: CLIP_benchmark's name of the data.
        task: of `TASKS`.
        model: the architecture.
        pretrained: the weights, as they were named.
        label: of the model, in tables and pictures.
        metrics: by CLIP_benchmark's and open_clip's names; shares from 0 to 1, and ranks.
        headline: the metrics that the table shows.
        samples: how many images it is of.
        seconds: that it took.
        more: further fields of the row.
        pictures: that show it.
    """

    suite: str
    task: str
    model: str
    pretrained: str
    label: str
    metrics: dict[str, float]
    headline: tuple[str, ...]
    samples: int
    seconds: float
    more: dict[str, Any] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)

    def beside(self, metric: str) -> tuple[Published, ...]:
        """What is published of this metric."""
        return published(self.suite, self.task, metric.removeprefix(_PROBE_PREFIX))

    def row(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "dataset": self.suite,
            "model": self.model,
            "pretrained": self.pretrained,
            "task": TASKS[self.task],
            "metrics": self.metrics,
            "language": "en",
            "label": self.label,
            "headline": list(self.headline),
            "published": [
                {"metric": metric, **figure._asdict()}
                for metric in self.metrics
                for figure in self.beside(metric)
            ],
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "version": clipfast.__version__,
            "pictures": [picture._asdict() for picture in self.pictures],
            **self.more,
        }


def append(folder: Path, results: Sequence[Result]) -> None:
    """A line for each, after those that are there.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE_NAME, "a") as file:
        file.writelines(f"{line_of(result)}\n" for result in results)


def line_of(result: Result) -> str:
    """JSON has no NaN: a metric that is none is null."""
    row = result.row()
    row["metrics"] = {n: None if x != x else x for n, x in row["metrics"].items()}
    return json.dumps(row, ensure_ascii=False)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Of ``results.jsonl``, in order; a line that a crash cut short is none.

    Raises:
        UserError: there is no such file.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder}: expected an evaluation's {FILE_NAME}; got none")
    return list(_rows(path.read_text()))


def _rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def shown(results: Sequence[Result]) -> Iterator[Table | str]:
    """What a terminal prints: the figures, with what is published beside them; where that is from;
    and of each robustness the shifts one by one."""
    table = Table(title="evaluation", title_justify="left", box=SIMPLE)
    for name in ("suite", "task", "model", "metric"):
        table.add_column(name, overflow="fold")
    table.add_column("here", justify="right", no_wrap=True)
    table.add_column("published", overflow="fold")
    sources = dict[str, int]()
    for result in results:
        first = (result.suite, result.task, result.label)
        for metric in result.headline:
            beside = [
                f"{percent(one)} {one.model} [{sources.setdefault(one.source, len(sources) + 1)}]"
                for one in nearest(result.beside(metric), result.model)
            ]
            here = figure(metric, result.metrics[metric])
            table.add_row(*first, metric, here, escape("\n".join(beside)))
            first = ("", "", "")
    yield table
    yield from (escape(f"[{number}] {source}") for source, number in sources.items())
    if sources:
        yield NOTE
    for result in results:
        if "shifts" in result.more:
            yield _table_of_shifts(result)
        yield from result.more.get("survival", [])


def _table_of_shifts(result: Result) -> Table:
    end = " reference"
    kinds = [name.removesuffix(end) for name in result.metrics if name.endswith(end)]
    table = Table(
        title=f"{result.suite} and its shifts, {result.label}", title_justify="left", box=SIMPLE
    )
    for name, justify in (("", "left"), *((kind, "right") for kind in kinds)):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich's literals
    rows = {"reference": [result.metrics[kind + end] for kind in kinds]} | result.more["shifts"]
    for name, values in rows.items():
        table.add_row(name, *(figure(name, value) for value in values))
    return table


def figure(metric: str, value: float) -> str:
    """A share in per cent, a rank as it is."""
    if value != value:
        return "–"
    return f"{value:.1f}" if "rank" in metric else f"{value:.2%}"


def words_of(beside: Published) -> str:
    return f"{percent(beside)} {beside.model} ({beside.source})"


def percent(beside: Published) -> str:
    """With as many digits as were published."""
    return f"{100 * beside.value:.2f}".rstrip("0").rstrip(".")


def nearest(beside: Sequence[Published], model: str) -> Sequence[Published]:
    """Those of the same model, if that is among many, or else the first few."""
    if len(beside) <= _MOST_BESIDE:
        return beside
    own = [one for one in beside if plain_name(one.model) == model.removesuffix("-quickgelu")]
    return own or beside[:1]
