"""README's picture: time and memory of both losses over N, ours and open_clip's.

``python -m clipfast_bench.report.losses bench/results/*losses*.json [--output docs]``
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipfast_bench.report.command import read_json
from clipfast_bench.report.curves import Look, Points, draw_curves, name_curves
from clipfast_bench.report.drawing import (
    COLOURS,
    Plot,
    mib_tick,
    new_figure,
    save,
    seconds_tick,
    styled,
)
from clipfast_bench.report.results import OURS, Contender, Row, read_result
from matplotlib.ticker import FuncFormatter

NAME = "losses"
_OPEN_CLIP = "open_clip"
# What is drawn of each op: ours, and whichever way results have named open_clip's.
_SHOWN = {
    "contrastive_loss": ("contrastive_loss", "open_clip ClipLoss"),
    "sigmoid_loss": ("sigmoid_loss", "open_clip SigLipLoss"),
}
# A colour for each loss; open_clip's are dashed.
_LOOKS = {
    name: Look(COLOURS[place], "os"[theirs], ("-", "--")[theirs])
    for place, names in enumerate(_SHOWN.values())
    for theirs, name in enumerate(names)
}


def draw(rows: Iterable[Row]) -> Plot:
    """Both panels from the rows that lie on the losses' curves."""
    seconds: dict[str, Points] = defaultdict(dict)
    mebibytes: dict[str, Points] = defaultdict(dict)
    for row in rows:
        if row.op not in _SHOWN or row.size is None:
            continue
        ours, theirs = _SHOWN[row.op]
        names = {OURS: ours, theirs: theirs, _OPEN_CLIP: theirs}
        for contender in row.contenders:
            if contender.name in names:
                _add(seconds, mebibytes, names[contender.name], row.size.value, contender)
    panels = (
        ("forward + backward", seconds, seconds_tick),
        ("memory beyond inputs and gradients", mebibytes, mib_tick),
    )
    with styled():
        figure = new_figure(3.6, 9.2)
        for axes, (title, points, words) in zip(figure.subplots(1, 2), panels, strict=True):
            axes.set_title(title)
            ends = draw_curves(axes, {n: points[n] for n in _LOOKS if points.get(n)}, _LOOKS)
            axes.set_xlabel("N pairs, D = 512, float32")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, w=words: w(value)))
            name_curves(axes, ends)
    return Plot(NAME, figure, "Time and memory of both losses over N, ours and open_clip's.")


def _add(
    seconds: dict[str, Points],
    mebibytes: dict[str, Points],
    name: str,
    n: float,
    contender: Contender,
) -> None:
    if contender.seconds is not None:
        seconds[name][n] = contender.seconds
    if contender.memory_mib is not None:
        mebibytes[name][n] = contender.memory_mib


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m clipfast_bench.report.losses")
    parser.add_argument(
        "results", nargs="+", type=Path, help="JSON files of the losses' benchmarks"
    )
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the picture's folder")
    args = parser.parse_args(arguments)
    rows = [row for path in args.results for row in read_result(read_json(path), str(path)).rows]
    for path in save(draw(rows), args.output):
        print(f"drew {path}")


if __name__ == "__main__":
    main()
