"""One HTML page of a benchmark run, with its plots as PNG and SVG beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from clipfast_bench.report.writing import write_report

from clipfast.errors import UserError


def report(arguments: Sequence[str], prog: str = "clipfast bench report") -> int:
    """Writes the page and says where.

    Raises:
        UserError: the file is no result of a benchmark run.
        OSError: it cannot be read, or the page not written.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("result", metavar="RESULT.json", type=Path, help="what a run left")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where to (default: beside the result, its name with -report)",
    )
    args = parser.parse_args(arguments)
    folder = args.output or args.result.with_name(f"{args.result.stem}-report")
    page, *others = write_report(read_json(args.result), folder)
    size = page.stat().st_size / 1000
    print(f"written: {page}, {size:,.0f} kB, and {len(others)} pictures in {folder / 'plots'}")
    return 0


def read_json(path: Path) -> dict:
    """Raises:
    UserError: it is not JSON.
    OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: expected the JSON of a benchmark run; got no JSON ({error})"
        ) from error


def main() -> int:
    try:
        return report(sys.argv[1:], "python -m clipfast_bench.report")
    except UserError as error:
        print(f"clipfast_bench.report: {error}", file=sys.stderr)
    except OSError as error:
        print(f"clipfast_bench.report: {error.filename}: {error.strerror}", file=sys.stderr)
    return 2
