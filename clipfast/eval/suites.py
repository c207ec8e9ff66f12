"""What is computed of a model on each suite: from opened data to results.

N images, K labelled images, C classes, W penultimate features, D features of the shared space.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipfast.data.text.captions import CaptionReader
from clipfast.eval.classification import Scores, scores
from clipfast.eval.datasets.sets import Classification, LabelledImages, Retrieval
from clipfast.eval.extract import Data, Extractor
from clipfast.eval.few_shot import FewShot, few_shot
from clipfast.eval.gallery import Gallery
from clipfast.eval.linear_probe import MOST_TRIED, Probe, Sweep, sweep
from clipfast.eval.progress import progress_bar
from clipfast.eval.results import Result
from clipfast.eval.retrieval import clip_benchmark_names, retrieval_metrics
from clipfast.eval.robustness.evaluation import RobustnessRow, robustness_table
from clipfast.eval.robustness.shifts import Shift
from clipfast.eval.subject import Subject
from clipfast.ranks.agreement import by_main

CLASSIFICATION_TASKS = ("zero-shot", "linear-probe", "few-shot", "robustness")
RETRIEVAL_TASKS = ("retrieval",)
TRAINED_TASKS = ("linear-probe", "few-shot")  # of labelled images


@dataclass(frozen=True)
class Suite:
    """Attributes:
    data: the sets.
    shifts: of the classes, for robustness.
    baselines: models on pixels that robustness is expected from; none where there are no training
        images.
    """

    data: Classification | Retrieval
    shifts: tuple[Shift, ...] = ()
    baselines: tuple[RobustnessRow, ...] = ()

    @property
    def name(self) -> str:
        return self.data.name

    def tasks(self, asked: Sequence[str]) -> list[str]:
        """Those of the asked ones that the data can serve."""
        if isinstance(self.data, Retrieval):
            return [task for task in asked if task in RETRIEVAL_TASKS]
        trained = self.data.train is not None
        return [
            task
            for task in asked
            if task in CLASSIFICATION_TASKS and (trained or task not in TRAINED_TASKS)
        ]


@dataclass(frozen=True)
class Shots:
    """Attributes:
    shots: labelled images of each class.
    seeds: draws of each number.
    """

    shots: tuple[int, ...]
    seeds: int


class Split(NamedTuple):
    """Labelled images that can be used.

    Attributes:
        penultimate: (K, W).
        labels: (K,) int64.
        numbers: (K,) int64, their samples.
    """

    penultimate: Tensor
    labels: Tensor
    numbers: NDArray[np.int64]


class Evaluation:
    """One model on one suite; what several tasks need is computed once. Its methods are collective,
    and their results are on every rank; pictures are rank 0's.

    Args:
        suite: with what its tasks need.
        subject: the model.
        extractor: its features.
        gallery: of the pictures; None draws none.
        shots: of the few-shot probes.
    """

    def __init__(
        self,
        suite: Suite,
        subject: Subject,
        extractor: Extractor,
        gallery: Gallery | None,
        shots: Shots,
    ) -> None:
        self.suite, self.subject, self.extractor = suite, subject, extractor
        self.world, self.shots = extractor.world, shots
        self.gallery = gallery if self.world.is_main else None
        self._classifiers = dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor]()
        self._accuracies = dict[str, float]()

    def result(self, task: str) -> Result:
        """What one of the suite's `tasks` comes to.

        Raises:
            UserError: data that cannot be read or used.
        """
        begin = time.perf_counter()
        found = _TASKS[task](self)
        return replace(found, seconds=time.perf_counter() - begin)

    def zero_shot(self) -> Result:
        test, images, found = self.test, self.labelled.test, self.zero_shot_scores
        pictures = []
        if self.gallery is not None:
            what = self._what("zero-shot")
            pictures = self.gallery.classes(what, found, images.classes)
            pictures += self.gallery.found_classes(
                what,
                images,
                test.numbers,
                self.extractor.projected(test.penultimate),
                self.classifier(images),
            )
        return self._result(
            "zero-shot",
            _metrics(found),
            (self._headline(),),
            len(test.labels),
            more={
                "classes": len(images.classes),
                "templates": list(images.templates),
                "prompts": images.prompts,
            },
            pictures=pictures,
        )

    def linear_probe(self) -> Result:
        swept, images = self.swept, self.labelled.test
        found = by_main(self.world, lambda: _probe_scores(swept.probe, self.test))
        self._accuracies["linear-probe"] = found.acc1
        pictures = []
        if self.gallery is not None:
            what = self._what("linear probe")
            pictures = self.gallery.classes(what, found, images.classes, self.zero_shot_scores)
            pictures += self.gallery.strengths(what, swept)
        return self._result(
            "linear-probe",
            {f"lp_{name}": value for name, value in _metrics(found).items()},
            (f"lp_{self._headline()}",),
            len(self.test.labels),
            more={
                "lambda": swept.probe.lam,
                "tried": [list(tried) for tried in swept.tried],
                "train_samples": len(self.train.labels),
            },
            pictures=pictures,
        )

    def few_shot(self) -> Result:
        train, test, validation = self.train, self.test, self.validation

        def work() -> list[FewShot]:
            title = f"{self.suite.name}: few-shot probes"
            with progress_bar(self.world, title, len(self.shots.shots)) as advance:
                return few_shot(
                    train.penultimate,
                    train.labels,
                    test.penultimate,
                    test.labels,
                    len(self.labelled.test.classes),
                    self.shots.shots,
                    range(self.shots.seeds),
                    validation_features=None if validation is None else validation.penultimate,
                    validation_labels=None if validation is None else validation.labels,
                    per_class=self.labelled.per_class,
                    tell=lambda _: advance(1),
                )

        found: list[FewShot] = by_main(self.world, work)
        self._accuracies["zero-shot"] = self.zero_shot_scores.acc1
        pictures = []
        if self.gallery is not None:
            label = self.subject.label
            pictures = self.gallery.shots(self.suite.name, label, found, self._accuracies)
        metrics = {f"lp_{self._headline()}@{f.shots}": f.mean for f in found}
        of_seeds = [f._asdict() | {"spread": f.spread} for f in found]
        return self._result(
            "few-shot",
            metrics,
            tuple(metrics),
            len(test.labels),
            more={"few_shot": of_seeds},
            pictures=pictures,
        )

    def retrieval(self) -> Result:
        assert isinstance(self.suite.data, Retrieval)
        samples = self.suite.data.test.samples
        found = self.extractor.captioned(Data.of(self.suite.name, samples), CaptionReader())
        metrics = retrieval_metrics(
            found.image, found.text, self.world.group, image_of_text=found.image_of_text
        )
        names = clip_benchmark_names(metrics)
        pictures = []
        if self.gallery is not None:
            pictures = self.gallery.found_pairs(
                self._what("retrieval"),
                samples,
                found.numbers,
                found.image,
                found.texts,
                found.text,
                found.image_of_text,
            )
        return self._result(
            "retrieval",
            metrics | names,
            tuple(names),
            len(found.image),
            more={"texts": len(found.text)},
            pictures=pictures,
        )

    def robustness(self) -> Result:
        label, shifts = self.subject.label, self.suite.shifts
        probe = None if self.labelled.train is None else self.swept.probe
        zero_shot, probed = [self.zero_shot_scores.acc1], list[float]()
        if probe is not None:
            found = by_main(self.world, lambda: _probe_scores(probe, self.test))
            probed.append(found.acc1)
        for shift in shifts:
            split = self.split(shift.images, f"{self.suite.name}: {shift.name}")
            zero_shot.append(self._zero_shot_scores(shift.images, split).acc1)
            if probe is not None:
                probed.append(by_main(self.world, partial(_under, shift, probe, split)))
        rows = [RobustnessRow(label, "zero-shot", zero_shot[0], tuple(zero_shot[1:]))]
        if probed:
            rows.append(RobustnessRow(label, "linear-probe", probed[0], tuple(probed[1:])))
        table = robustness_table(
            self.suite.name,
            [shift.corruption or shift.name for shift in shifts],
            [*rows, *self.suite.baselines],
            reference_samples=len(self.test.labels),
            shift_samples=len(self.test.labels) * len(shifts),
        )
        rows = [row for row in table.rows if row.kind != "baseline"]
        metrics = dict[str, float]()
        for row in rows:
            metrics[f"{row.kind} reference"] = row.reference
            metrics[f"{row.kind} shifts"] = row.average
            if row.effective is not None:
                metrics[f"{row.kind} effective"] = row.effective
        more = {
            "shifts": {s: [r.shifts[i] for r in rows] for i, s in enumerate(table.shifts)},
            "survival": [survival.sentence() for survival in table.survivals()],
            "baselines": [
                {"label": r.label, "reference": r.reference, "shifts": r.average}
                for r in table.rows
                if r.kind == "baseline"
            ],
        }
        return self._result(
            "robustness",
            metrics,
            tuple(metrics),
            len(self.test.labels),
            more=more,
            pictures=[] if self.gallery is None else self.gallery.robustness(table),
        )

    @property
    def labelled(self) -> Classification:
        assert isinstance(self.suite.data, Classification)
        return self.suite.data

    @cached_property
    def test(self) -> Split:
        return self.split(self.labelled.test, self.suite.name)

    @cached_property
    def train(self) -> Split:
        assert self.labelled.train is not None
        return self.split(self.labelled.train, f"{self.suite.name}: train")

    @cached_property
    def validation(self) -> Split | None:
        """None: a part of the training images is held out."""
        if self.labelled.validation is None:
            return None
        return self.split(self.labelled.validation, f"{self.suite.name}: validation")

    @cached_property
    def zero_shot_scores(self) -> Scores:
        return self._zero_shot_scores(self.labelled.test, self.test)

    @cached_property
    def swept(self) -> Sweep:
        """The linear probe of the training images."""
        train, validation = self.train, self.validation

        def work() -> Sweep:
            with progress_bar(self.world, f"{self.suite.name}: λ", MOST_TRIED) as advance:
                return sweep(
                    train.penultimate,
                    train.labels,
                    None if validation is None else validation.penultimate,
                    None if validation is None else validation.labels,
                    len(self.labelled.test.classes),
                    per_class=self.labelled.per_class,
                    tell=lambda _: advance(1),
                )

        swept: Sweep = by_main(self.world, work)
        return swept

    def split(self, images: LabelledImages, name: str) -> Split:
        found = self.extractor.images(Data.of(name, images.samples))
        labels = torch.from_numpy(images.labels[found.numbers]).to(self.world.device)
        return Split(found.penultimate, labels, found.numbers)

    def classifier(self, images: LabelledImages) -> Tensor:
        """(D, C) of the classes' names and sentences."""
        key = images.classes, images.templates
        if key not in self._classifiers:
            self._classifiers[key] = self.extractor.classifier(*key)
        return self._classifiers[key]

    def _zero_shot_scores(self, images: LabelledImages, split: Split) -> Scores:
        classifier = self.classifier(images)
        found: Scores = by_main(
            self.world,
            lambda: scores(self.extractor.projected(split.penultimate), classifier, split.labels),
        )
        return found

    def _headline(self) -> str:
        """The metric that the paper gives of the suite."""
        return "mean_per_class_recall" if self.labelled.per_class else "acc1"

    def _what(self, task: str) -> str:
        return f"{self.suite.name}, {task}, {self.subject.label}"

    def _result(
        self,
        task: str,
        metrics: dict[str, float],
        headline: tuple[str, ...],
        samples: int,
        **rest: Any,
    ) -> Result:
        subject = self.subject
        more = {"weights": subject.fingerprint, "precision": self.extractor.settings.precision}
        more |= rest.pop("more", {})
        return Result(
            self.suite.name,
            task,
            subject.name,
            subject.weights,
            subject.label,
            metrics,
            headline,
            samples,
            seconds=0,
            more=more,
            **rest,
        )


_TASKS = {
    "zero-shot": Evaluation.zero_shot,
    "linear-probe": Evaluation.linear_probe,
    "few-shot": Evaluation.few_shot,
    "robustness": Evaluation.robustness,
    "retrieval": Evaluation.retrieval,
}


def _metrics(found: Scores) -> dict[str, float]:
    return {
        "acc1": found.acc1,
        "acc5": found.acc5,
        "mean_per_class_recall": found.mean_per_class_recall,
    }


def _probe_scores(probe: Probe, split: Split) -> Scores:
    """A bias is the weight of a feature that is 1."""
    one = split.penultimate.new_ones(len(split.labels), 1, dtype=torch.float64)
    features = torch.cat([split.penultimate.double(), one], dim=1)
    weights = torch.cat([probe.weight_CD, probe.bias_C[:, None]], dim=1)
    return scores(features, weights.T, split.labels)


def _under(shift: Shift, probe: Probe, split: Split) -> float:
    """The probe's accuracy on the shift's classes."""
    found = shift.logits(probe.predict(split.penultimate)).argmax(dim=1)
    return (found == split.labels).double().mean().item()
