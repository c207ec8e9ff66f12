"""The report's page: what is on it, in the order in which it is read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import clipfast
from clipfast.eval.results import NOTE
from clipfast.report.charts import Chart, Curve, Series, make_chart, smoothed
from clipfast.report.embedded import data_uri
from clipfast.report.evaluation import headlines, sections, summary
from clipfast.report.metric_names import metric_title
from clipfast.report.run_data import RunData
from clipfast.report.template import Figure, asset, environment
from clipfast.train.monitoring.metrics import (
    best_of,
    higher_is_better,
    is_measure,
    is_share,
    main_metric,
)
from clipfast.train.monitoring.summary import duration

_KEPT_FAULTS = 200
_MOST_FIGURES = 8
# All else that a point has is a part of the loss.
_NO_PART = {
    *("kind", "step", "epoch", "steps", "seconds", "loss", "grad_norm", "lr", "scale", "skipped"),
    *("samples_per_second", "samples_per_second_per_gpu", "data_wait", "data_time", "batch_time"),
    "memory",
}


@dataclass
class Cell:
    words: str
    best: bool = False


@dataclass
class Table:
    """Attributes:
    rows: of each evaluation, its epoch and its metrics.
    """

    columns: list[str]
    rows: list[tuple[str, list[Cell]]] = field(default_factory=list)


def render(run: RunData) -> str:
    """The whole page as HTML, with everything in it."""
    loss, *others = charts(run)
    return (
        environment()
        .get_template("page.html")
        .render(
            run=run,
            style=asset("style.css"),
            script=asset("pointer.js"),
            state=state(run),
            verdict=verdict(run),
            figures=figures(run),
            loss=loss,
            charts=[chart for chart in others if chart is not None],
            evaluation_charts=evaluation_charts(run),
            table=evaluation_table(run),
            examples=[
                example | {"source": data_uri(run.folder / "examples" / example["file"])}
                for example in run.examples
            ],
            evaluated=sections(run.evaluation) if run.evaluation else [],
            note=NOTE,
            announced=run.history.starts[-1].get("announced", []) if run.history.starts else [],
            environment=run.history.starts[-1].get("environment", {}) if run.history.starts else {},
            faults=run.faults[:_KEPT_FAULTS],
            reasons=Counter(fault.get("reason", "") for fault in run.faults).most_common(5),
            skipped=[point for point in run.history.points if point.get("skipped")],
            version=clipfast.__version__,
            as_json=json.dumps,
        )
    )


def state(run: RunData) -> str:
    """One word: finished, stopped, unfinished; empty where the files do not tell."""
    if run.history.end is not None:
        return "finished" if run.history.end["outcome"] == "done" else "stopped"
    return "unfinished" if run.history.starts else ""


def verdict(run: RunData) -> str:
    """How the run ended, what it learned, and how good that is; what was evaluated where there is
    no run."""
    if run.evaluation and not run.is_run:
        return summary(run.evaluation)
    return " ".join(filter(None, (_ending(run), _learned(run), _quality(run))))


def _ending(run: RunData) -> str:
    points, starts, end = run.history.points, run.history.starts, run.history.end
    if not points:
        return "No step is recorded."
    done = points[-1]["step"] + 1
    if not starts:
        return f"{done:,} steps are recorded."
    total, epochs = starts[-1].get("steps"), starts[-1].get("epochs")
    of_all = f" of {total:,}" if total else ""
    if end is None:
        return f"At step {done:,}{of_all} it was still running, or was killed."
    if end["outcome"] != "done":
        return f"Stopped after step {end['step']:,}{of_all}: {end['outcome']}."
    seconds = sum(point.get("seconds", 0.0) for point in points)
    in_epochs = f"{epochs} epoch{'s' * (epochs != 1)}, " if epochs else ""
    return f"{in_epochs}{done:,} steps, in {duration(seconds)}."


def _learned(run: RunData) -> str:
    losses = _curve(run, "loss")
    if len(losses) < 2:
        return ""
    ends = smoothed(losses)
    change = "fell" if ends[-1][1] < ends[0][1] else "rose"
    return f"The loss {change} from {ends[0][1]:.2f} to {ends[-1][1]:.2f}."


def _quality(run: RunData) -> str:
    name = main_metric(run.history.evaluations)
    best = best_of(run.history.evaluations, name) if name else None
    if name is None or best is None:
        return ""
    value = _metric_words(name, best["metrics"][name])
    return f"Best {metric_title(name)}: {value}, after epoch {best['epochs']}."


def figures(run: RunData) -> list[Figure]:
    """The numbers that one looks for first."""
    points, found = run.history.points, []
    if run.evaluation and not run.is_run:
        return [Figure(*words) for words in headlines(run.evaluation)][:_MOST_FIGURES]
    losses = smoothed(_curve(run, "loss"))
    if losses:
        found.append(Figure("final loss", f"{losses[-1][1]:.4g}", "mean of the last steps"))
    name = main_metric(run.history.evaluations)
    best = best_of(run.history.evaluations, name) if name else None
    if name is not None and best is not None:
        value = _metric_words(name, best["metrics"][name])
        found.append(Figure(f"best {metric_title(name)}", value, f"epoch {best['epochs']}"))
    rates = sorted(y for _, y in _curve(run, "samples_per_second"))
    if rates:
        found.append(Figure("samples per second", f"{rates[len(rates) // 2]:,.0f}", "median"))
    seconds = sum(point.get("seconds", 0.0) for point in points)
    if seconds:
        waits = (point.get("data_wait", 0.0) * point.get("seconds", 0.0) for point in points)
        waited = sum(waits) / seconds
        found.append(Figure("data wait", f"{waited:.1%}", f"of {duration(seconds)}"))
    if points and run.history.starts:
        if batch := run.history.starts[-1].get("global_batch"):
            seen = (points[-1]["step"] + 1) * batch
            found.append(Figure("samples seen", f"{seen:,}", f"batches of {batch:,}"))
        if memory := max(point.get("memory", 0) for point in points):
            found.append(Figure("memory", f"{memory / 2**30:.2f} GiB", "most of rank 0"))
        skipped = sum(point.get("skipped", 0) for point in points)
        found.append(Figure("steps skipped", f"{skipped:,}", "loss or gradients not finite"))
        found.append(Figure("samples replaced", f"{len(run.faults):,}", "could not be used"))
    return found


def charts(run: RunData) -> list[Chart | None]:
    """The loss, which may be None, then all other curves over the steps."""
    loss = _curve(run, "loss")
    parts = _loss_parts(run)
    series = [Series("each point", loss, "faint"), Series("smoothed", smoothed(loss))]
    if len(parts) > 1:
        series += [Series(name.replace("_", " "), smoothed(_curve(run, name))) for name in parts]
    rates = _curve(run, "samples_per_second")
    norms = _curve(run, "grad_norm")
    memory = [(x, y / 2**30) for x, y in _curve(run, "memory")]
    return [
        make_chart("Loss", series, words=_three_digits),
        make_chart(
            "Learning rate", [Series("lr", _curve(run, "lr"))], words=_short, from_zero=True
        ),
        make_chart("Logit scale", [Series("scale", _curve(run, "scale"))], words=_three_digits),
        make_chart(
            "Gradient norm",
            [Series("each point", norms, "faint"), Series("smoothed", smoothed(norms))],
            words=_three_digits,
            from_zero=True,
        ),
        make_chart(
            "Samples per second",
            [Series("each point", rates, "faint"), Series("smoothed", smoothed(rates))],
            words=lambda y: f"{y:,.0f}",
            from_zero=True,
        ),
        make_chart(
            "Data wait",
            [Series("share of the time", _curve(run, "data_wait"))],
            words=_percent,
            tick_words=_short_percent,
            from_zero=True,
        ),
        make_chart(
            "Memory", [Series("GiB", memory)], words=lambda y: f"{y:.3g} GiB", from_zero=True
        ),
    ]


def evaluation_charts(run: RunData) -> list[Chart]:
    """Recalls and accuracies over the epochs, and the validation loss."""
    evaluations = run.history.evaluations
    names = _metric_names(run)
    groups = {
        "Recall at 1": [n for n in names if n.endswith("R@1")],
        "Zero-shot accuracy": [n for n in names if "top1" in n or "top5" in n],
        "Validation loss": [n for n in names if n.endswith("val_loss")],
    }
    found = []
    for title, group in groups.items():
        series = [
            Series(
                metric_title(name),
                [(e["epochs"], e["metrics"][name]) for e in evaluations if _is_number(e, name)],
            )
            for name in group
        ]
        share = title != "Validation loss"
        if len(evaluations) > 1 and (
            chart := make_chart(
                title,
                series,
                words=_percent if share else _three_digits,
                tick_words=_short_percent if share else None,
                x_name="epoch",
            )
        ):
            found.append(chart)
    return found


def evaluation_table(run: RunData) -> Table:
    """Every metric of every evaluation, with the best of each marked."""
    names = _metric_names(run)
    evaluations = run.history.evaluations
    best = {name: best_of(evaluations, name) for name in names}
    table = Table([metric_title(name) for name in names])
    for evaluation in evaluations:
        cells = []
        for name in names:
            if not _is_number(evaluation, name):
                cells.append(Cell("–"))
                continue
            several = sum(_is_number(e, name) for e in evaluations) > 1
            words = _metric_words(name, evaluation["metrics"][name])
            cells.append(Cell(words, several and best[name] is evaluation))
        table.rows.append((str(evaluation["epochs"]), cells))
    return table


def _metric_names(run: RunData) -> list[str]:
    """The main one first, then those where more is better."""
    names = {n: None for e in run.history.evaluations for n in e["metrics"] if is_measure(n)}
    main = main_metric(run.history.evaluations)

    def place(name: str) -> tuple[bool, ...]:
        family = name.replace("top5", "top1")
        return name != main, family != main, not is_share(name), not higher_is_better(name)

    return sorted(names, key=place)


def _metric_words(name: str, value: float) -> str:
    return _percent(value) if is_share(name) else f"{value:.4g}"


def _is_number(evaluation: dict[str, Any], name: str) -> bool:
    return isinstance(evaluation["metrics"].get(name), (int, float))


def _loss_parts(run: RunData) -> list[str]:
    names = {name: None for point in run.history.points for name in point}
    return [name for name in names if name not in _NO_PART]


def _curve(run: RunData, name: str) -> Curve:
    points = run.history.points
    return [(p["step"] + 1, p[name]) for p in points if p.get(name) is not None]


def _three_digits(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _short_percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _short(value: float) -> str:
    return f"{value:.2g}"
