"""A result as files: the plots, and the page that has them inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipfast_bench.report.curves import curve_plots, curves_of
from clipfast_bench.report.drawing import Plot, inline_svg, save
from clipfast_bench.report.page import PagePlot, render
from clipfast_bench.report.ratios import ratio_plots
from clipfast_bench.report.results import Result, read_result
from clipfast_bench.report.roofline import roofline_plot

PAGE = "report.html"
PLOTS = "plots"


def write_report(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes a run's plots as PNG and SVG, and one page that needs no other file.

    Args:
        result: a result file's JSON, today's form or an older one.
        folder: where to; it is made if it is not there.

    Returns:
        What was written, the page first.

    Raises:
        UserError: it is no result of a benchmark run.
        OSError: a file cannot be written.
    """
    read = read_result(result)
    folder = Path(folder)
    files, shown = [], []
    for family, plot in plots_of(read):
        png, svg = save(plot, folder / PLOTS)
        files += [png, svg]
        shown.append(PagePlot(family, inline_svg(svg, plot.alt)))
    page = folder / PAGE
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(render(read, shown), encoding="utf-8")
    return [page, *files]


def plots_of(result: Result) -> Iterator[tuple[str, Plot]]:
    """Every plot for which there is data, with its family; the roofline's is empty."""
    roofline = roofline_plot(result)
    if roofline is not None:
        yield "", roofline
    names: set[str] = set()
    for family in result.families:
        rows = result.family(family)
        plots = [*ratio_plots(family, rows)]
        plots += [plot for curves in curves_of(rows) for plot in curve_plots(curves)]
        for plot in plots:
            if plot.name in names:
                raise RuntimeError(f"two plots are called {plot.name}")
            names.add(plot.name)
            yield family, plot
