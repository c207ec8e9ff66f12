"""What `clipfast eval` left in a folder: rows as tables, each figure beside what is published, and
pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfast.errors import UserError
from clipfast.eval.published import Published
from clipfast.eval.results import FILE_NAME, TASKS, figure, nearest, read_rows, words_of
from clipfast.report.embedded import data_uri
from clipfast.report.metric_names import metric_title

FOLDER = "evaluation"  # of a run: where `clipfast eval logs/NAME` writes

_HEADINGS = {
    "zero-shot": "Zero-shot classification",
    "linear-probe": "Linear probe",
    "few-shot": "Few-shot probe",
    "retrieval": "Retrieval",
    "robustness": "Robustness",
}
_TITLES = {TASKS[task]: heading for task, heading in _HEADINGS.items()}


@dataclass
class Line:
    """One metric.

    Attributes:
        values: of each model of the section, as they are read; empty where there is none.
        beside: published figures, each with its model and source.
    """

    metric: str
    values: list[str]
    beside: list[str]


@dataclass
class SuiteLines:
    """Attributes:
    images: how many the figures are of.
    """

    suite: str
    images: str
    lines: list[Line]


@dataclass
class Picture:
    """Attributes:
    source: the PNG as a data URI.
    """

    source: str
    alt: str


@dataclass
class ShiftTable:
    """Attributes:
    columns: what was evaluated: "zero-shot", "linear-probe".
    rows: the reference's, then each shift's name and accuracies.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


@dataclass
class TaskSection:
    """Attributes:
    models: the columns.
    sentences: conclusions that a row draws itself.
    """

    title: str
    models: list[str]
    suites: list[SuiteLines]
    shifts: list[ShiftTable] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Evaluation:
    """Attributes:
    folder: of the pictures.
    rows: `clipfast.eval.results.Result.row` each; of what was evaluated twice the later.
    """

    folder: Path
    rows: list[dict[str, Any]]


def has_evaluation(folder: Path) -> bool:
    return (folder / FILE_NAME).is_file()


def read_evaluation(folder: Path) -> Evaluation:
    """Reads the rows of a folder.

    Raises:
        UserError: there are none.
        OSError: they cannot be read.
    """
    rows = {
        (row["dataset"], row["task"], _model(row)): row
        for row in read_rows(folder)
        if "dataset" in row and "task" in row and isinstance(row.get("metrics"), dict)
    }
    if not rows:
        raise UserError(
            f"{folder / FILE_NAME}: expected rows with dataset, task and metrics; got none"
        )
    return Evaluation(folder, list(rows.values()))


def sections(evaluation: Evaluation) -> list[TaskSection]:
    """One for each task, in the order in which the paper asks."""
    tasks = dict.fromkeys((*_TITLES, *(row["task"] for row in evaluation.rows)))
    by_task = ([row for row in evaluation.rows if row["task"] == task] for task in tasks)
    return [_section(evaluation.folder, rows) for rows in by_task if rows]


def headlines(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """(what, value, of which model) of the first metric of each row."""
    for row in evaluation.rows:
        for metric in _headline(row)[:1]:
            what = f"{row['dataset']}, {_task(row).lower()}"
            yield what, _words(row, metric), f"{metric_title(metric)}, {_label(row)}"


def summary(evaluation: Evaluation) -> str:
    """How much there is."""
    models = {_label(row) for row in evaluation.rows}
    suites = {row["dataset"] for row in evaluation.rows}
    tasks = list(dict.fromkeys(_task(row).lower() for row in evaluation.rows))
    what = " and ".join((", ".join(tasks[:-1]), tasks[-1]) if len(tasks) > 1 else tasks)
    return (
        f"{len(models):,} model{'s' * (len(models) != 1)} on "
        f"{len(suites):,} data set{'s' * (len(suites) != 1)}: {what}."
    )


def _section(folder: Path, rows: Sequence[dict[str, Any]]) -> TaskSection:
    """Of the rows of one task."""
    models = list(dict.fromkeys(map(_model, rows)))
    suites = sorted({str(row["dataset"]) for row in rows})
    return TaskSection(
        _task(rows[0]),
        [label for label, _ in models],
        [_suite_lines([row for row in rows if row["dataset"] == s], models) for s in suites],
        shifts=[_shift_table(row) for row in rows if row.get("shifts")],
        sentences=[sentence for row in rows for sentence in row.get("survival", ())],
        pictures=list(_pictures(folder, rows)),
    )


def _suite_lines(rows: Sequence[dict[str, Any]], models: Sequence[tuple[str, str]]) -> SuiteLines:
    """Of the rows of one task on one suite."""
    of_model = {_model(row): row for row in rows}
    counts = sorted({row["samples"] for row in rows if "samples" in row})
    images = " or ".join(f"{count:,}" for count in counts)
    lines = []
    for metric in dict.fromkeys(metric for row in rows for metric in _headline(row)):
        values = [_words(of_model[m], metric) if m in of_model else "" for m in models]
        beside = dict.fromkeys(words for row in rows for words in _beside(row, metric))
        lines.append(Line(metric_title(metric), values, list(beside)))
    return SuiteLines(str(rows[0]["dataset"]), f"{images} images" if images else "", lines)


def _headline(row: dict[str, Any]) -> list[str]:
    """The metrics that are shown."""
    return list(row.get("headline") or row["metrics"])


def _words(row: dict[str, Any], metric: str) -> str:
    """A metric's value; one that is not a number is written as null."""
    value = row["metrics"].get(metric)
    return "–" if value is None else figure(metric, value)


def _beside(row: dict[str, Any], metric: str) -> Iterator[str]:
    published = [
        Published(**{name: one.get(name, "") for name in Published._fields})
        for one in row.get("published", ())
        if one.get("metric") == metric
    ]
    for one in nearest(published, str(row.get("model", ""))):
        yield words_of(one) + (f"; {one.note}" if one.note else "")


def _shift_table(row: dict[str, Any]) -> ShiftTable:
    end = " reference"
    kinds = [name.removesuffix(end) for name in row["metrics"] if name.endswith(end)]
    rows = [("reference", [row["metrics"][kind + end] for kind in kinds]), *row["shifts"].items()]
    return ShiftTable(
        f"{row['dataset']} and its shifts, {_label(row)}",
        kinds,
        [(name, [figure("acc1", value) for value in values]) for name, values in rows],
    )


def _pictures(folder: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Picture]:
    """Each file once; one that is gone is passed over."""
    named = {one["file"]: one for row in rows for one in row.get("pictures", ())}
    for file, one in named.items():
        path = folder / Path(file).name
        if path.is_file():
            yield Picture(data_uri(path), str(one.get("alt") or one.get("title", "")))


def _task(row: dict[str, Any]) -> str:
    return _TITLES.get(row["task"], str(row["task"]).replace("_", " "))


def _model(row: dict[str, Any]) -> tuple[str, str]:
    """Its name, and what tells it from another of that name."""
    return _label(row), str(row.get("pretrained", ""))


def _label(row: dict[str, Any]) -> str:
    return str(row.get("label") or row.get("model", ""))
