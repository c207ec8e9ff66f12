"""A plan as a picture: memory by part for each way to compute a step, and a step's time by part."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipfast.eval.pictures.canvas import COLOURS, GREY, PALE, TEXT, canvas
from clipfast.plan.estimate import Outcome, Plan, Step
from clipfast.plan.memory import GIB, Memory
from clipfast.plan.table import way_name

_TIMES = ("compute", "exposed", "waiting")
_TIME_NAMES = ("compute", "exchange that nothing hides", "waiting for images")
_ROOM = 1.24  # of the axis over the longest bar, for its words
_WIDEST = 2.5  # of the GPU's memory: longer bars are cut


def draw(plan: Plan, path: Path) -> Figure:
    """Writes a PNG.

    Returns:
        What was drawn.

    Raises:
        OSError: it cannot be written.
    """
    request = plan.request
    title = (
        f"{request.model.name} on {request.gpus:,} × {request.gpu.name}, batch {request.batch:,}, "
        f"{request.precision}: on paper, no GPU has run this"
    )
    with canvas(path, title, height=6.6) as figure:
        above, below = figure.subplots(2, 1, height_ratios=[10, 5.2])
        _draw_memory(above, plan)
        _draw_time(below, plan)
    return figure


def _draw_memory(axes: Axes, plan: Plan) -> None:
    outcomes = plan.others
    places = [row + 0.6 * outcome.choice.checkpointing for row, outcome in enumerate(outcomes)]
    limit, whole = plan.outcome.usable / GIB, plan.request.gpu.memory_gib
    longest = max(outcome.memory.total / GIB for outcome in outcomes)
    end = min(max(longest, whole), _WIDEST * whole)
    starts = [0.0] * len(outcomes)
    for part, colour in zip(Memory._fields, (*COLOURS[:5], GREY), strict=True):
        sizes = [getattr(outcome.memory, part) / GIB for outcome in outcomes]
        axes.barh(places, sizes, left=starts, height=0.72, color=colour, label=part)
        starts = [a + b for a, b in zip(starts, sizes, strict=True)]
    for place, outcome, total in zip(places, outcomes, starts, strict=True):
        axes.text(
            min(total, end) + 0.01 * end,
            place,
            _words(outcome, total),
            va="center",
            fontsize=8,
            color=TEXT,
            weight="bold" if outcome.choice == plan.outcome.choice else "normal",
        )
    axes.axvline(limit, color=TEXT, linewidth=1.2, zorder=3)
    axes.axvspan(limit, whole, color=PALE, zorder=0)
    axes.text(
        limit, -0.75, f"usable, {limit:.0f} GiB ", ha="right", va="bottom", fontsize=8, color=TEXT
    )
    axes.set_yticks(places, [_name(outcome, plan) for outcome in outcomes])
    axes.set_ylim(places[-1] + 0.5, -0.75)
    axes.set_xlim(0, end * _ROOM)
    axes.set_xlabel(f"memory of one {plan.request.gpu.name}, GiB")
    axes.grid(axis="x")
    _legend(axes, 6)


def _words(outcome: Outcome, total: float) -> str:
    return f"{total:,.0f}" if outcome.fits else f"{total:,.0f}, too much"


def _name(outcome: Outcome, plan: Plan) -> str:
    name = way_name(outcome.choice)
    return f"→ {name}" if outcome.choice == plan.outcome.choice else name


def _draw_time(axes: Axes, plan: Plan) -> None:
    rows: list[tuple[str, Step]] = [
        (f"clipfast, {_share(plan.utilisation.middle)}", plan.outcome.step)
    ]
    if plan.utilisation.low < plan.utilisation.high:
        rows += [
            (f"clipfast, {_share(plan.utilisation.high)}", plan.fast),
            (f"clipfast, {_share(plan.utilisation.low)}", plan.slow),
        ]
    rows.append(
        (f"open_clip's way, {_share(plan.utilisation.middle)}", plan.open_clip_steps.middle)
    )
    places = list(range(len(rows)))
    starts = [0.0] * len(rows)
    for part, name, colour in zip(_TIMES, _TIME_NAMES, COLOURS, strict=False):
        seconds = [getattr(step, part) for _, step in rows]
        axes.barh(places, seconds, left=starts, height=0.66, color=colour, label=name)
        starts = [a + b for a, b in zip(starts, seconds, strict=True)]
    for place, (_, step), total in zip(places, rows, starts, strict=True):
        axes.text(
            total + 0.01 * max(starts),
            place,
            f"{total:.3g} s, {plan.days(step):,.3g} days",
            va="center",
            fontsize=8,
            color=TEXT,
        )
    axes.set_yticks(places, [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(starts) * _ROOM)
    axes.set_xlabel("seconds of a step, at that share of the GPU's peak")
    axes.grid(axis="x")
    _legend(axes, 3)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.03),
        borderpad=0,
        columnspacing=1.2,
        handlelength=1.2,
        handletextpad=0.5,
    )


def _share(share: float) -> str:
    return f"{share:.0%} of peak"
