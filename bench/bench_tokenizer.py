"""Captions to ids on one core, beside open_clip's tokenizer.

Ordinary captions are ImageNet's class names in OpenAI's templates, and passages of 6 to 24 words
of scikit-learn's data descriptions: English with numbers, brackets and punctuation. Every run has
captions that neither tokenizer has seen, as training does.
"""

from __future__ import annotations

from importlib.resources import files
from itertools import cycle
from random import Random

import open_clip
import pytest
import torch
from clipfast_bench.compare import interleave
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from clipfast import tokenize
from clipfast.packed_text import pack_padded

CAPTIONS, ROUNDS, WARMUP = 1024, 9, 2


def templates(random: Random) -> str:
    return random.choice(OPENAI_IMAGENET_TEMPLATES)(random.choice(IMAGENET_CLASSNAMES))


def prose(random: Random) -> str:
    first, length = random.randrange(len(_WORDS) - 24), random.randint(6, 24)
    return " ".join(_WORDS[first : first + length])


_TEXTS = sorted(files("sklearn.datasets.descr").iterdir(), key=lambda file: file.name)
_WORDS = [word for f in _TEXTS if f.name.endswith(".rst") for word in f.read_text().split()]


@pytest.mark.parametrize("kind", [templates, prose])
def test_tokenizer(benchmark, kind):
    theirs = open_clip.get_tokenizer("ViT-B-32")
    random = Random(0)
    runs = [[kind(random) for _ in range(CAPTIONS)] for _ in range(ROUNDS + WARMUP)]
    for part, whole in zip(
        tokenize(runs[0], packed=True), pack_padded(theirs(runs[0])), strict=True
    ):
        assert torch.equal(part, whole), "other ids"
    ours_next, theirs_next = cycle(runs), cycle(runs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        interleave(
            benchmark,
            lambda: tokenize(next(ours_next), packed=True),
            {"open_clip 3.3.0": lambda: theirs(next(theirs_next))},
            rounds=ROUNDS,
            warmup=WARMUP,
        )
    finally:
        torch.set_num_threads(threads)
    if benchmark.stats is not None:
        rate = CAPTIONS / benchmark.stats.stats.median
        benchmark.extra_info["figures"] = {"captions/s": rate}
