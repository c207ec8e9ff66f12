"""A loader over given samples, as the tests of several subjects make it."""

from functools import partial

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.native import NativeDecoder
from clipfast.data.loader import Loader
from clipfast.data.quarantine import Quarantine
from clipfast.data.sampler import Sampler
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizer import tokenize

SIZE = 32


def tar_samples(pattern):
    return SampleSet([TarSource(str(pattern), Storage())])


def loader_of(samples, folder, **changes):
    """Args:
    folder: for quarantine.jsonl.
    changes: batch_size, seed, most (unusable samples), told (a list of faults), and what `Loader`
        takes.
    """
    told = changes.pop("told", [])
    batch_size, seed = changes.pop("batch_size", 8), changes.pop("seed", 0)
    most = changes.pop("most", 1.0)
    parts = {
        "sampler": Sampler.of(samples.shards, batch_size, workers=1, seed=seed),
        "decoder": NativeDecoder(SIZE, Augmentation()),
        "image_size": SIZE,
        "read_caption": CaptionReader(),
        "tokenize": partial(tokenize, context_length=32, packed=True),
        "augment": True,
        "workers": 2,
        "quarantine": Quarantine(folder / "quarantine.jsonl", most, told.append),
    }
    return Loader(samples, **(parts | changes))
