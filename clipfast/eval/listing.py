"""The suites that are known by name, for `clipfast eval --list`."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from clipfast.eval.datasets.opening import SUITES, KnownSuite
from clipfast.eval.published import published
from clipfast.eval.results import percent

_CAPTION = (
    "published: zero-shot accuracy or text recall at 1 of ViT-L/14@336px, by the paper, or else by "
    "open_clip with OpenAI's released weights"
)


def suites_listed() -> Table:
    """A line for each: where it is looked for in --data, and the first figure published of it."""
    table = Table(title="suites", title_justify="left", box=SIMPLE, caption=_CAPTION)
    table.add_column("name", no_wrap=True)
    for name in ("data", "in --data", "split"):
        table.add_column(name, overflow="fold")
    for name in ("classes", "published"):
        table.add_column(name, justify="right")
    for name, suite in SUITES.items():
        classes = f"{suite.classes:,}" if suite.classes else "pairs"
        figures = [percent(figure) for figure in published(name, *_main(suite))[:1]]
        table.add_row(name, suite.title, suite.at, suite.splits, classes, *figures)
    table.add_row("demo", "clipfast demo's digits", "the demo's folder", "held-out writing", "10")
    return table


def _main(suite: KnownSuite) -> tuple[str, str]:
    """The task and metric that a suite is known for."""
    if not suite.classes:
        return "retrieval", "text_retrieval_recall@1"
    return "zero-shot", "mean_per_class_recall" if suite.per_class else "acc1"
