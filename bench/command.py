"""`clipfast bench`: the suite, and the commands around it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

from clipfast.errors import UserError


def bench(arguments: Sequence[str]) -> int:
    """Runs the suite, or the command that the first word names.

    Raises:
        UserError: a mistake in flags, files or data.
        OSError: a file cannot be read or written.
    """
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        return _run(arguments)
    if arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]][0](arguments[1:])
    if arguments[0] not in ("-h", "--help"):
        raise UserError(
            f"expected one of {', '.join(COMMANDS)}, or the flags of run; got {arguments[0]!r}"
        )
    parser = argparse.ArgumentParser(
        prog="clipfast bench",
        description="Measurements on this machine. Without a command: run.",
        epilog="commands:\n"
        + "\n".join(f"  {name:12} {summary}" for name, (_, summary) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="and its flags")
    parser.print_help()
    return 0


def _run(arguments: Sequence[str]) -> int:
    began = time.perf_counter()  # importing torch takes of the budget too
    from clipfast_bench.harness.suite import run

    return run(arguments, began)


def _compare(arguments: Sequence[str]) -> int:
    from clipfast_bench.harness.comparison import compare

    return compare(arguments)


def _report(arguments: Sequence[str]) -> int:
    from clipfast_bench.report.command import report

    return report(arguments)


def _contribute(arguments: Sequence[str]) -> int:
    from clipfast_bench.harness.contribution import contribute

    return contribute(arguments)


def _contributed(arguments: Sequence[str]) -> int:
    from clipfast_bench.harness.contribution import contributed

    return contributed(arguments)


def _feed(arguments: Sequence[str]) -> int:
    from clipfast_bench.feeding.feed import feed

    return feed(arguments)


def _train(arguments: Sequence[str]) -> int:
    from clipfast_bench.training.train import train

    return train(arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "run": (_run, "every operation, the loader, the step and the trainer, beside their peers"),
    "compare": (_compare, "two runs' results: what became faster or slower, and what is noise"),
    "report": (_report, "a run's results as one HTML page with plots"),
    "contribute": (_contribute, "a run and the verification of this machine as one file to send"),
    "contributed": (_contributed, "check such files"),
    "feed": (_feed, "how fast your data comes in, and what a training needs"),
    "train": (_train, "the trainer beside open_clip's, on your shards"),
}
