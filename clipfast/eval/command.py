"""`clipfast eval CHECKPOINT… --suite NAME…`: what a model can do, beside what is published.

Zero-shot classification, linear and few-shot probes, retrieval and robustness. Suites are sets by
name (--list has them), or paths: a folder with a folder for each class (train/, val/ and test/ in
it are its splits), test shards as CLIP_benchmark publishes them, or pairs of images and captions.
Nothing is downloaded unless --download asks for it.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from clipfast.errors import UserError
from clipfast.eval.datasets.opening import open_suite
from clipfast.eval.datasets.sets import Classification, Retrieval
from clipfast.eval.extract import Extractor, Settings
from clipfast.eval.gallery import Gallery
from clipfast.eval.listing import suites_listed
from clipfast.eval.progress import progress_bar
from clipfast.eval.results import (
    FILE_NAME,
    TASKS,
    Result,
    append,
    line_of,
    shown,
)
from clipfast.eval.robustness.baselines import pixel_baselines
from clipfast.eval.robustness.corruptions import KINDS, SEVERITIES
from clipfast.eval.robustness.evaluation import RobustnessRow
from clipfast.eval.robustness.shifts import Shift, natural_shifts, open_shift_folder, shifts_of
from clipfast.eval.subject import Subject, check_named, open_subject
from clipfast.eval.suites import TRAINED_TASKS, Evaluation, Shots, Suite
from clipfast.models.precision import PRECISIONS
from clipfast.ranks.agreement import by_main, check_same_samples, main_first
from clipfast.ranks.launch import joined
from clipfast.ranks.world import World

_DEFAULT_TASKS = "zero-shot,retrieval"
_DEFAULT_SEVERITY = "3"
_OUTPUT = "evaluation"
_IMAGENET, _DEMO = "imagenet1k", "demo"


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluates, writes the rows and pictures, and prints the table.

    Raises:
        UserError: a mistake in the flags, or data or weights that cannot be had.
        OSError: the results cannot be written.
    """
    args = _parse(arguments)
    if args.list:
        Console().print(suites_listed())
        return 0
    if not args.download:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tokenizers and configurations too
    with joined(args) as world, _told(world):
        suites = [_open(args, world, name) for name in args.suite]
        run = _Run(args, world, suites)
        results = run.results()
        if world.is_main:
            _show(results, run.output)
        by_main(world, partial(_write_json, args.json, results))
    return 0


class _Run:
    """All checkpoints on all suites.

    Attributes:
        output: the folder of rows and pictures.
    """

    def __init__(self, args: argparse.Namespace, world: World, suites: Sequence[Suite]) -> None:
        self.args, self.world, self.suites = args, world, list(suites)
        self.output = Path(args.output or _OUTPUT)

    def results(self) -> list[Result]:
        """In the order of checkpoints, suites and tasks; each is written as soon as it is there."""
        results, gallery = list[Result](), None
        shots = Shots(self.args.shots, self.args.seeds)
        for checkpoint, model in self.args.checkpoints:
            subject = self._open_subject(checkpoint, model)
            if gallery is None:
                gallery = Gallery(self.output)
                self.suites = [
                    _with_baselines(suite, self.world, self.args.workers) for suite in self.suites
                ]
            extractor = self._extractor(subject)
            for suite in self.suites:
                evaluation = Evaluation(suite, subject, extractor, gallery, shots)
                for task in suite.tasks(self.args.task):
                    result = evaluation.result(task)
                    by_main(self.world, partial(append, self.output, [result]))
                    results.append(result)
        return results

    def _open_subject(self, checkpoint: str, model: str | None) -> Subject:
        opening = partial(
            open_subject,
            checkpoint,
            model=model,
            device=self.world.device,
            precision=self.args.precision,
            download=self.args.download,
        )
        subject = main_first(self.world, opening)
        if self.args.output is None and subject.run is not None and len(self.args.checkpoints) == 1:
            self.output = subject.run / _OUTPUT
        return subject

    def _extractor(self, subject: Subject) -> Extractor:
        settings = Settings(
            self.args.precision,
            subject.preprocess,
            self.args.workers,
            self.args.batch_size,
            cache=Path(self.args.cache),
        )
        return Extractor(subject.model, self.world, settings)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipfast eval",
        usage="%(prog)s CHECKPOINT… --suite NAME… [FLAGS]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(parser)
    args = parser.parse_args(arguments)
    if args.list:
        return args
    args.checkpoints = _checkpoints(args)
    if not args.suite:
        raise UserError("--suite: expected a name of --list, or a path; got none")
    args.task = _listed("--task", args.task or _DEFAULT_TASKS, TASKS)
    args.corruption = (
        None if args.corruption is None else _listed("--corruption", args.corruption, KINDS)
    )
    severities = _listed("--severity", args.severity, [str(s) for s in SEVERITIES])
    args.severity = tuple(map(int, severities))
    args.shots = _numbers("--shots", args.shots)
    for flag, value in (
        ("--batch-size", args.batch_size),
        ("--seeds", args.seeds),
    ):
        if value is not None and value < 1:
            raise UserError(f"{flag}: expected at least 1; got {value}")
    if args.workers < 0:
        raise UserError(f"--workers: expected 0 or more; got {args.workers}")
    return args


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "checkpoint",
        nargs="*",
        metavar="CHECKPOINT",
        help="a file of ours, open_clip's or OpenAI's, a Hugging Face or open_clip folder, the "
        "folder of a run, or NAME:TAG of an installed open_clip, such as ViT-B-32:openai",
    )
    add("--suite", nargs="+", action="extend", metavar="NAME", help="sets by name, or paths")
    add("--data", metavar="DIR", help="where sets are looked for by name (default: here)")
    add("--list", action="store_true", help="the suites, where they are looked for, what is known")
    add(
        "--task",
        metavar="TASKS",
        help=f"of {', '.join(TASKS)}, joined by commas (default {_DEFAULT_TASKS})",
    )
    add("--model", help="which model the checkpoint is of (default: its run or its weights tell)")
    add("--pretrained", metavar="FILE|TAG", help="with --model, in place of CHECKPOINT")
    add("--classes", metavar="FILE", help="the classes' names, one a line, in their order")
    add("--templates", metavar="FILE", help="sentences, one a line, with {} where the name goes")
    add("--download", action="store_true", help="fetch data and weights that are missing")
    group = parser.add_argument_group("probes and robustness").add_argument
    group(
        "--shots", default="1,2,4,8,16", metavar="NUMBERS", help="per class, 1,2,4,8,16 if not said"
    )
    group("--seeds", type=int, default=3, metavar="N", help="draws of each number (default 3)")
    group("--shift", nargs="+", default=[], metavar="DIR", help="folders of the same classes")
    group(
        "--corruption",
        metavar="KINDS",
        help=f"of {', '.join(KINDS)} (default: all of them, where there are no other shifts)",
    )
    group("--severity", default=_DEFAULT_SEVERITY, metavar="1..5", help="default 3")
    group = parser.add_argument_group("how").add_argument
    group("--output", metavar="DIR", help="of rows and pictures (default: RUN/evaluation, or here)")
    group("--json", metavar="FILE", help="the rows of this call alone, as one JSON list")
    group("--cache", default=str(_cache()), metavar="DIR", help="of features (default %(default)s)")
    group("--batch-size", type=int, metavar="N", help="default: the fastest, found by trial")
    cores = len(os.sched_getaffinity(0))
    group("--workers", type=int, default=cores, metavar="N", help="threads that decode")
    group("--device", default="cuda", help="cuda, or cpu, which is taken where there is no GPU")
    group("--precision", choices=PRECISIONS, default="fp32", help="default fp32")
    # As `clipfast train` has them by default.
    parser.set_defaults(
        dist_url=None, dist_backend=None, rank_timeout=600.0, no_set_device_rank=False
    )


def _checkpoints(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """Each with the model that it is of."""
    checkpoints = [(checkpoint, args.model) for checkpoint in args.checkpoint]
    if args.pretrained is not None:
        if args.model is None:
            raise UserError(f"--pretrained {args.pretrained}: expected --model with it; got none")
        if Path(args.pretrained).exists():
            checkpoints.append((args.pretrained, args.model))
        else:
            checkpoints.append((f"{args.model}:{args.pretrained}", None))
    if not checkpoints:
        raise UserError(
            "CHECKPOINT: expected one or more, before --suite; got none (a file, a folder, or "
            "NAME:TAG such as ViT-B-32:openai)"
        )
    for checkpoint, _ in checkpoints:
        check_named(checkpoint)  # before any data is opened
    return checkpoints


def _listed(flag: str, text: str, known: Sequence[str] | dict[str, str]) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in words:
        if word not in known:
            raise UserError(f"{flag}: expected some of {', '.join(known)}; got {word!r}")
    return words


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"{flag}: expected whole numbers of at least 1, as 1,2,4; got {text!r}")
    return tuple(sorted({int(word) for word in words}))


def _cache() -> Path:
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "clipfast" / "features"


def _open(args: argparse.Namespace, world: World, name: str) -> Suite:
    """The suite, with what the tasks need of it."""
    data = main_first(world, partial(_open_data, args, name))
    _check_tasks(name, data, args.task)
    check_same_samples(world, f"--suite {name}", data.test.samples.fingerprint)
    suite = Suite(data)
    if not isinstance(data, Classification) or "robustness" not in suite.tasks(args.task):
        return suite
    return Suite(data, tuple(main_first(world, partial(_shifts, args, name, data))))


def _with_baselines(suite: Suite, world: World, workers: int) -> Suite:
    """Of pixels, for the robustness of a set with training images."""
    data = suite.data
    if not suite.shifts or not isinstance(data, Classification) or data.train is None:
        return suite

    def measured() -> list[RobustnessRow]:
        title = f"{suite.name}: regressions on pixels"
        with progress_bar(world, title, 1 + len(suite.shifts)) as advance:
            return pixel_baselines(data, suite.shifts, workers=workers, tell=lambda: advance(1))

    return replace(suite, baselines=tuple(by_main(world, measured)))


def _open_data(args: argparse.Namespace, name: str) -> Classification | Retrieval:
    root, classes, templates = (
        None if path is None else Path(path) for path in (args.data, args.classes, args.templates)
    )
    if name == _DEMO:
        from clipfast.demo.evaluation import open_demo

        return open_demo(root or Path())
    return open_suite(
        name,
        root,
        download=args.download,
        train=any(task in (*TRAINED_TASKS, "robustness") for task in args.task),
        classes=classes,
        templates=templates,
    )


def _check_tasks(name: str, data: Classification | Retrieval, asked: Sequence[str]) -> None:
    served = Suite(data).tasks(asked)
    untrained = isinstance(data, Classification) and data.train is None
    refused = [task for task in asked if task in TRAINED_TASKS and untrained]
    if refused:
        raise UserError(
            f"--task {refused[0]}: expected training images beside {name}'s test images; got none"
        )
    if not served:
        kind = "classes" if isinstance(data, Classification) else "pairs"
        raise UserError(f"--task {','.join(asked)}: expected one for {kind}, which {name} has")


def _shifts(args: argparse.Namespace, name: str, data: Classification) -> list[Shift]:
    """Those of the user, those by name, and built-in corruptions where asked for or alone."""
    shifts = [open_shift_folder(Path(folder), data) for folder in args.shift]
    if name == _IMAGENET and args.data is not None:
        shifts += natural_shifts(Path(args.data), data)
    if name == _DEMO:
        from clipfast.demo.evaluation import demo_shifts

        shifts += demo_shifts(Path(args.data or "."))
    if args.corruption is not None or not shifts or name == _DEMO:
        shifts += shifts_of(data, args.corruption or KINDS, args.severity)
    return shifts


def _write_json(file: str | None, results: Sequence[Result]) -> None:
    if file is not None:
        rows = ",\n".join(map(line_of, results))
        Path(file).write_text(f"[{rows}]\n")


def _show(results: Sequence[Result], output: Path) -> None:
    console = Console(highlight=False)
    for part in shown(results):
        console.print(part, soft_wrap=isinstance(part, str))
    pictures = {picture.file for result in results for picture in result.pictures}
    beside = f", {len(pictures)} pictures beside it"
    console.print(f"written: {output / FILE_NAME}{beside}", soft_wrap=True, markup=False)


@contextmanager
def _told(world: World) -> Iterator[None]:
    """Log lines go to rank 0's stderr."""
    log, handler = logging.getLogger("clipfast"), logging.StreamHandler()
    before = log.level, log.propagate
    shown = handler if world.is_main else logging.NullHandler()
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(shown)
        log.level, log.propagate = before
