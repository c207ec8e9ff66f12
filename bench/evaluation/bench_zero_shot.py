"""The zero-shot classifier of ImageNet's class names in OpenAI's 80 templates, beside open_clip's.

The text tower in float32. Seconds are of one class: open_clip's builder takes its default of ten
classes at a time, so its time per class does not depend on how many there are, and is measured on
ten; in ours classes share what their sentences begin with, the more the more there are, and are
measured on fifty. All 1,000 of ours: ``-m slow``.
"""

from __future__ import annotations

import copy

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.cases import FIRST, LARGE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Samples, Subject
from clipfast_bench.inputs import models

from clipfast import accelerate, tokenize, zero_shot_classifier
from clipfast.packed_text import lexical_order, share_beginnings

THEIR_CLASSES, OUR_CLASSES, ALL = 10, 50, 1000
ROUNDS, SHARE = 3, 1e-5
THEIRS = "open_clip"


def class_names(count: int) -> list[str]:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES[:count])


def templates() -> list[str]:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def build_theirs(model) -> torch.Tensor:
    import open_clip
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    names = class_names(THEIR_CLASSES)
    return open_clip.build_zero_shot_classifier(model, tokenizer, names, OPENAI_IMAGENET_TEMPLATES)


def build_ours(model, classes: int) -> torch.Tensor:
    return zero_shot_classifier(model, class_names(classes), templates())


@pytest.mark.skipif(bool(peers.open_clip(torch.device("cpu"))), reason="needs open_clip")
@pytest.mark.parametrize(
    "name",
    [
        case(models.TINY, id="tiny", tier=FIRST, work=1.0),
        case("ViT-B-32", id="ViT-B-32", tier=LARGE, work=100.0),
    ],
)
def test_zero_shot_classifier(contest, name):
    """open_clip's classifier of ten classes is the right one."""
    torch.manual_seed(0)
    theirs = models.open_clips(name).eval()
    expected = build_theirs(theirs)
    norm = expected.norm().item()

    def entrant(model) -> Entrant:
        def answer() -> Answer:
            off = (build_ours(model, THEIR_CLASSES) - expected).norm().item()
            return Answer(off, SHARE * norm, "norm of the classifier")

        return Entrant(lambda: build_ours(model, OUR_CLASSES), answer, OUR_CLASSES)

    def reference() -> Entrant:
        answer = Answer(0.0, SHARE * norm, "norm of the classifier")
        return Entrant(lambda: build_theirs(theirs), lambda: answer, THEIR_CLASSES)

    def adapted() -> Entrant:
        return entrant(accelerate(copy.deepcopy(theirs), verbose=False))

    contest.hold(
        Subject("zero_shot_classifier"),
        [
            Contender(OURS, lambda: entrant(models.ours(name, theirs.state_dict()).eval())),
            Contender(THEIRS, reference, peers.open_clip),
            Contender("open_clip after accelerate()", adapted, peers.open_clip),
        ],
        rounds=ROUNDS,
        figures=figures,
    )


def figures(samples: Samples) -> dict[str, float]:
    middle = {name: sorted(found)[len(found) // 2] for name, found in samples.items()}
    found = {f"tokens of {ALL} classes, {form}": n for form, n in tokens(ALL).items()}
    found[f"s for {ALL} classes"] = ALL * middle[OURS]
    if THEIRS in middle:
        found[f"open_clip's s for {ALL} classes"] = ALL * middle[THEIRS]
    return found


def tokens(classes: int) -> dict[str, int]:
    """What a text tower computes of their sentences: padded, packed, and with beginnings shared."""
    sentences = [t.replace("{}", name) for name in class_names(classes) for t in templates()]
    packed = tokenize(sentences, packed=True)
    shared = share_beginnings(packed.take(lexical_order(packed)))
    return {
        "padded": 77 * len(sentences),
        "packed": len(packed.tokens),
        "beginnings shared": len(shared.tokens),
    }


@pytest.mark.skipif(bool(peers.open_clip(torch.device("cpu"))), reason="needs open_clip")
@pytest.mark.slow
def test_zero_shot_classifier_of_a_thousand_classes(contest):
    """Ours alone: open_clip's takes most of an hour on two cores. That it is right, the case of
    fifty classes tells."""
    torch.manual_seed(0)
    model = models.ours("ViT-B-32").eval()
    contest.hold(
        Subject("zero_shot_classifier"),
        [Contender(OURS, lambda: Entrant(lambda: build_ours(model, ALL), units=ALL))],
        rounds=1,
    )
