"""Features of captions and of JPEG files for an evaluation, beside open_clip's way to them.

float32, everything on the same cores. open_clip's images come from its preprocessing in torch's
DataLoader, with the number of workers that was the fastest here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Subject
from clipfast_bench.inputs import models
from clipfast_bench.inputs.captions import captions
from clipfast_bench.inputs.photos import photos
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from clipfast.data.images.preprocess import Preprocess
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.extract import Data, Extractor, Settings
from clipfast.eval.sentences import encode_sentences
from clipfast.ranks.world import World

CAPTIONS, IMAGES, BATCH, ROUNDS = 256, 96, 32, 3
TEXT_SHARE, IMAGE_SHARE = 1e-5, 1e-2  # pixels may be off by two of 255
THEIRS = "open_clip"
pytestmark = pytest.mark.skipif(
    bool(peers.open_clip(torch.device("cpu"))), reason="needs open_clip"
)


def both(name: str):
    """open_clip's model and ours, of the same weights."""
    torch.manual_seed(0)
    theirs = models.open_clips(name).eval()
    return theirs, models.ours(name, theirs.state_dict()).eval()


def answer(actual: torch.Tensor, expected: torch.Tensor, share: float) -> Answer:
    return Answer(
        (actual - expected).norm().item(), share * expected.norm().item(), "norm of features"
    )


@torch.no_grad()
def their_texts(model, name: str, texts: list[str]) -> torch.Tensor:
    import open_clip

    tokenizer = open_clip.get_tokenizer(models.open_clip_name(name))
    batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    return torch.cat([model.encode_text(tokenizer(batch), normalize=True) for batch in batches])


@pytest.mark.parametrize(
    "name",
    [
        case(models.TINY, id="tiny", tier=FIRST, work=1.0),
        case("ViT-B-32", id="ViT-B-32", tier=LARGE, work=20.0),
    ],
)
def test_text_features(contest, name):
    theirs, ours = both(name)
    texts = captions(CAPTIONS)
    expected = their_texts(theirs, name, texts)
    contest.hold(
        Subject("text_features"),
        contenders(
            Entrant(
                lambda: encode_sentences(ours, texts),
                lambda: answer(encode_sentences(ours, texts), expected, TEXT_SHARE),
                CAPTIONS,
            ),
            Entrant(
                lambda: their_texts(theirs, name, texts),
                lambda: answer(expected, expected, TEXT_SHARE),
                CAPTIONS,
            ),
        ),
        rounds=ROUNDS,
    )


def contenders(ours: Entrant, theirs: Entrant) -> list[Contender]:
    return [Contender(OURS, lambda: ours), Contender(THEIRS, lambda: theirs, peers.open_clip)]


class Files(Dataset):
    """JPEG files as open_clip's preprocessing shows them."""

    def __init__(self, paths: list[Path], preprocess) -> None:
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.preprocess(Image.open(self.paths[number]))


class Images:
    """A folder of photographs, and both ways to their features."""

    def __init__(self, folder: Path, kind: str, name: str) -> None:
        import open_clip

        self.theirs, self.ours = both(name)
        pair = photos(kind)
        (folder / "photos").mkdir()
        for number in range(IMAGES):
            (folder / "photos" / f"{number:04d}.jpg").write_bytes(pair[number % len(pair)])
        self.samples = open_class_folder(folder).samples
        self.size = self.ours.image_size
        self.files = Files(
            sorted(folder.glob("*/*.jpg")), open_clip.image_transform(self.size, is_train=False)
        )

    @torch.no_grad()
    def theirs_of(self, workers: int) -> torch.Tensor:
        loader = DataLoader(self.files, BATCH, num_workers=workers)
        return torch.cat([self.theirs.encode_image(x, normalize=True) for x in loader])

    def ours_of(self, threads: int) -> torch.Tensor:
        settings = Settings("fp32", Preprocess(), workers=threads, batch_size=BATCH)
        extractor = Extractor(self.ours, World(), settings)
        features = extractor.images(Data.of("photos", self.samples))
        return extractor.projected(features.penultimate)


def fastest(run: Callable[[int], object], choices: Sequence[int]) -> int:
    def seconds(choice: int) -> float:
        began = time.perf_counter()
        run(choice)
        return time.perf_counter() - began

    return min(choices, key=seconds)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        case(models.TINY, "short side 256", id="tiny, short side 256", tier=FIRST, work=1.0),
        case("ViT-B-32", "original", id="ViT-B-32, original", tier=MORE, work=5.0),
        case("ViT-B-32", "1280 × 854", id="ViT-B-32, 1280 x 854", tier=LARGE, work=8.0),
    ],
)
def test_image_features(contest, tmp_path, name, kind):
    images = Images(tmp_path, kind, name)
    threads = torch.get_num_threads()
    expected = images.theirs_of(0)
    workers = fastest(images.theirs_of, [0, 1, threads])
    contest.hold(
        Subject("image_features"),
        contenders(
            Entrant(
                lambda: images.ours_of(threads),
                lambda: answer(images.ours_of(threads), expected, IMAGE_SHARE),
                IMAGES,
            ),
            Entrant(
                lambda: images.theirs_of(workers),
                lambda: answer(expected, expected, IMAGE_SHARE),
                IMAGES,
            ),
        ),
        rounds=ROUNDS,
        figures=lambda samples: {
            "images/s": 1 / sorted(samples[OURS])[len(samples[OURS]) // 2],
            "open_clip's workers": workers,
        },
    )
