"""The command line: `clipfast COMMAND …`. A user's mistake is one sentence and exit code 2."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from clipfast import __version__
from clipfast.errors import OtherRankError, UserError

_MISTAKE = 2
_SIGNALLED = 128  # plus the signal's number: the shell's code for a command that it ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        arguments: the command and its flags; None takes the process's own.
    """
    # Before torch loads OpenMP: threads that wait for each other spin for microseconds, then sleep.
    # Its own choice is to spin on, which makes a step 5 to 20 times as long wherever something else
    # wants a core, and gains nothing where nothing does.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog="clipfast",
        description="Faster CLIP training.",
        epilog="commands:\n"
        + "\n".join(f"  {name:8} {summary}" for name, (_, summary) in _COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipfast {__version__}")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="what to do")
    command = parser.parse_args(arguments[:1]).command
    try:
        return _flushed(lambda: _COMMANDS[command][0](arguments[1:]))
    except OtherRankError:
        return _MISTAKE
    except UserError as error:
        return _fail(command, str(error))
    except KeyboardInterrupt:
        print(f"clipfast {command}: interrupted", file=sys.stderr)
        return _SIGNALLED + signal.SIGINT
    except BrokenPipeError as error:
        return _unread(command, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(command, f"{where}{error.strerror or error}")


def _fail(command: str, sentence: str) -> int:
    print(f"clipfast {command}: {sentence}", file=sys.stderr)
    return _MISTAKE


def _flushed(run: Callable[[], int]) -> int:
    """A pipe that is broken fails here, and not in Python's exit, which prints of it."""
    try:
        return run()
    finally:
        sys.stdout.flush()


def _unread(command: str, error: OSError) -> int:
    """Whoever reads our output, such as `head`, may have seen enough; another pipe is a fault."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        return _SIGNALLED + signal.SIGPIPE
    return _fail(command, error.strerror or str(error))


def _demo(arguments: Sequence[str]) -> int:
    from clipfast.demo.command import demo

    return _until_interrupted(lambda: demo(arguments))


def _train(arguments: Sequence[str]) -> int:
    from clipfast.train.flags.parsing import parse_args
    from clipfast.train.loop import train

    args = parse_args(arguments)
    return _until_interrupted(lambda: train(args))


def _until_interrupted(run: Callable[[], object]) -> int:
    from clipfast.train.loop import Interrupted

    try:
        run()
    except Interrupted as stopped:
        print(f"clipfast: {stopped}", file=sys.stderr)
        return _SIGNALLED + stopped.signal_number
    return 0


def _convert(arguments: Sequence[str]) -> int:
    from clipfast.weights.convert import convert_checkpoint

    convert_checkpoint(arguments)
    return 0


def _shards(arguments: Sequence[str]) -> int:
    from clipfast.shard_tools.command import shards

    return shards(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from clipfast_bench.command import bench

    return bench(arguments)


def _plan(arguments: Sequence[str]) -> int:
    from clipfast.plan.command import plan

    return plan(arguments)


def _eval(arguments: Sequence[str]) -> int:
    from clipfast.eval.command import evaluate

    return evaluate(arguments)


def _report(arguments: Sequence[str]) -> int:
    from clipfast.report.command import report

    return report(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from clipfast.doctor import doctor

    return doctor(arguments)


_COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "demo": (_demo, "make handwriting data, train a small CLIP on it, test it zero-shot"),
    "train": (_train, "train a model, with open_clip's flags"),
    "eval": (_eval, "zero-shot, probes, retrieval, robustness, beside the paper's figures"),
    "report": (_report, "one HTML page of a run or an evaluation: curves, tables, pictures"),
    "plan": (_plan, "memory, days and feeding of a run on many GPUs, before it is started"),
    "convert": (_convert, "weights between OpenAI's, open_clip's and Hugging Face's forms"),
    "shards": (_shards, "make, check, shrink and describe shards of training data"),
    "bench": (_bench, "every operation, the loader and the trainer beside their peers"),
    "doctor": (_doctor, "what this machine has, and which backend serves which operation"),
}
