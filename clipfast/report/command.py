"""`clipfast report FOLDER`: one HTML page of a run or an evaluation, to look at and send around."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipfast.report.page import render
from clipfast.report.run_data import read_run


def report(arguments: Sequence[str]) -> int:
    """Writes the page and says where.

    Raises:
        UserError: there is no run and no evaluation.
        OSError: the page cannot be written.
    """
    parser = argparse.ArgumentParser(prog="clipfast report", description=__doc__)
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="of a run, ours or open_clip's: logs/NAME; or of an evaluation",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the page (default: FOLDER/report.html)"
    )
    args = parser.parse_args(arguments)
    folder = Path(args.folder)
    page = render(read_run(folder))
    output = Path(args.output) if args.output else folder / "report.html"
    output.write_text(page)
    print(f"written: {output}, {output.stat().st_size / 1000:,.0f} kB")
    return 0
