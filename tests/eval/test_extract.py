"""Features of images and texts: the model's own, whatever ranks, caches and faults do."""

import logging
import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from evaluation_data import classes, pairs, picture
from ranks import run_ranks
from torch.testing import assert_close

from clipfast.data.images.decode import eval_pixels
from clipfast.data.images.normalize import Normalize
from clipfast.data.images.preprocess import Preprocess
from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.data.text.captions import CaptionReader
from clipfast.data.text.tokenizer import tokenize
from clipfast.errors import UserError
from clipfast.eval.batch_size import fastest_batch_size
from clipfast.eval.datasets.class_folder import open_class_folder
from clipfast.eval.extract import Data, Extractor, Settings
from clipfast.models.factory import create_model
from clipfast.ranks.world import World

CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model):
    return create_model(tiny_model).eval()


class Counting:
    """A source that tells how many images were read of it, in memory and in a file."""

    def __init__(self, source, log=None):
        self._source, self.log, self.images, self.reads = source, log, 0, 0
        self.name, self.counts, self.fingerprint = source.name, source.counts, source.fingerprint

    def read(self, number, *, image=True):
        self.images += image
        self.reads += 1
        if self.log is not None and image:
            with open(self.log, "a") as file:
                file.write(f"{number}\n")
        return self._source.read(number, image=image)

    def place(self, number):
        return self._source.place(number)

    def faults(self):
        return self._source.faults()


def counted(folder, count=20, bad=()):
    return Counting(TarSource(pairs(folder, count, bad), Storage()))


def extractor(model, *, cache=None, batch_size=8, world=World(), **settings):  # noqa: B008
    how = Settings("fp32", Preprocess(), 1, batch_size, cache=cache, **settings)
    return Extractor(model, world, how)


def expected_images(model, numbers):
    pixels = torch.stack([eval_pixels(picture(n), 32) for n in numbers])
    with torch.no_grad():
        return model.encode_image(Normalize()(pixels), normalize=True)


def test_images_are_encoded_as_the_model_does_and_kept_before_its_projection(model, tmp_path):
    source = counted(tmp_path)
    makes = extractor(model)
    found = makes.images(Data.of("x", SampleSet([source])))
    assert found.numbers.tolist() == list(range(20))
    assert found.penultimate.shape == (20, 64)
    assert_close(makes.projected(found.penultimate), expected_images(model, range(20)))


def test_what_cannot_be_used_has_no_row_and_is_told(model, tmp_path, caplog):
    source = counted(tmp_path, 20, bad=[0, 7, 8, 19])
    with caplog.at_level(logging.WARNING, "clipfast.eval"):
        found = extractor(model).images(Data.of("mnist", SampleSet([source])))
    good = [n for n in range(20) if n not in (0, 7, 8, 19)]
    assert found.numbers.tolist() == good
    makes = extractor(model)
    assert_close(makes.projected(found.penultimate), expected_images(model, good))
    assert "mnist: 4 of 20 cannot be used and are left out" in caplog.messages
    with pytest.raises(UserError, match="x: expected samples that can be used; got none"):
        makes.images(Data.of("x", SampleSet([counted(tmp_path, 3, bad=range(3))])))


def test_a_cache_saves_every_image_but_the_unusable_ones_and_gives_the_same_bits(model, tmp_path):
    cache = tmp_path / "cache"
    source, faulty = counted(tmp_path), counted(tmp_path, 21, bad=[5])
    plain = extractor(model).images(Data.of("x", SampleSet([source])))
    source.images = 0
    for decoded in (20, 20):
        found = extractor(model, cache=cache).images(Data.of("x", SampleSet([source])))
        assert source.images == decoded
        assert torch.equal(found.penultimate, plain.penultimate)
    for decoded in (21, 22):
        found = extractor(model, cache=cache).images(Data.of("x", SampleSet([faulty])))
        assert faulty.images == faulty.reads == decoded
        assert len(found.numbers) == 20


def test_other_weights_data_precisions_or_views_have_caches_of_their_own(model, tmp_path):
    cache, source, other = tmp_path / "cache", counted(tmp_path), counted(tmp_path, 21)

    def images(source, model=model, precision="fp32", preprocess=Preprocess()):  # noqa: B008
        how = Settings(precision, preprocess, 1, 8, cache=cache)
        return Extractor(model, World(), how).images(Data.of("x", SampleSet([source])))

    images(source)
    assert len(list(cache.iterdir())) == 1
    images(other)
    images(source, precision="amp_bf16")
    images(source, preprocess=Preprocess(resize_mode="squash"))
    with torch.no_grad():
        model.visual.conv1.weight.mul_(2)
    images(source)
    assert len(list(cache.iterdir())) == 5
    assert source.images == 4 * 20


def slow_work(tiny_model, folder, log):
    """Extracts, and ends as kill -9 ends it after the fifth batch."""
    torch.manual_seed(0)
    model = create_model(tiny_model).eval()
    makes = extractor(model, cache=folder / "cache", batch_size=4)
    encode, batches = makes.encoder.penultimate, []

    def killed(batch):
        batches.append(batch)
        if len(batches) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(batch)

    makes.encoder.penultimate = killed
    source = Counting(TarSource(pairs(folder, 40), Storage()), log)
    makes.images(Data.of("x", SampleSet([source])))


@pytest.mark.slow
def test_an_extraction_that_was_killed_goes_on_where_it_was(tiny_model, tmp_path):
    process = get_context("forkserver").Process(
        target=slow_work, args=(tiny_model, tmp_path, tmp_path / "log")
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    torch.manual_seed(0)
    model = create_model(tiny_model).eval()
    source = counted(tmp_path, 40)
    makes = extractor(model, cache=tmp_path / "cache", batch_size=4)
    found = makes.images(Data.of("x", SampleSet([source])))
    assert source.images == 40 - 5 * 4
    assert_close(makes.projected(found.penultimate), expected_images(model, range(40)))


def test_pairs_are_images_and_their_first_captions(model, tmp_path):
    source = counted(tmp_path, 11, bad=[3])
    image, text = extractor(model).pairs(Data.of("x", SampleSet([source])), CaptionReader())
    good = [n for n in range(11) if n != 3]
    captions = [source.read(n).captions[0].decode() for n in good]
    assert_close(image, expected_images(model, good))
    assert_close(text, model.encode_text(tokenize(captions, 32), normalize=True).detach())


class SeveralCaptions(Counting):
    """Sample n has n % 3 captions; none of them can be used where there are none."""

    def read(self, number, *, image=True):
        sample = super().read(number, image=image)
        texts = tuple(f"picture {number}, caption {i}".encode() for i in range(number % 3))
        return sample._replace(captions=texts)


def test_an_image_has_all_of_its_captions_and_none_without_an_image_is_kept(model, tmp_path):
    source = SeveralCaptions(TarSource(pairs(tmp_path, 10, bad=[4]), Storage()))
    found = extractor(model).captioned(Data.of("x", SampleSet([source])), CaptionReader())
    kept = [1, 2, 5, 7, 8]
    assert found.numbers.tolist() == kept
    assert_close(found.image, expected_images(model, kept))
    texts = [f"picture {n}, caption {i}" for n in kept for i in range(n % 3)]
    assert list(found.texts) == texts
    assert found.image_of_text.tolist() == [kept.index(n) for n in kept for _ in range(n % 3)]
    expected = model.encode_text(tokenize(texts, 32), normalize=True).detach()
    assert_close(found.text, expected)


def test_texts_and_classifiers_are_computed_once(model, tmp_path, monkeypatch):
    makes = extractor(model, cache=tmp_path)
    sentences = [f"sentence {i} of a few" for i in range(30)]
    texts = makes.texts(sentences, "x")
    classifier = makes.classifier(["cat", "dog"], ["a photo of a {}.", "the {}"])
    assert_close(texts, model.encode_text(tokenize(sentences, 32), normalize=True).detach())
    monkeypatch.setattr(model, "encode_text", None)
    again = extractor(model, cache=tmp_path)
    assert torch.equal(again.texts(sentences, "x"), texts)
    assert torch.equal(again.classifier(["cat", "dog"], ["a photo of a {}.", "the {}"]), classifier)
    with pytest.raises(TypeError):
        again.classifier(["cat", "dog"], ["the {}"])


def of_a_rank(tiny_model, folder, shard, several):
    torch.manual_seed(0)
    model = create_model(tiny_model).eval()
    group = dist.group.WORLD if dist.is_initialized() else None
    world = World()
    if group is not None:
        world = World(dist.get_rank(), dist.get_world_size(), group=group, control=group)
    shown = Data.of("x", SampleSet([TarSource(shard, Storage())]))
    several = SeveralCaptions(TarSource(several, Storage()))
    found = []
    for cache in (None, folder / f"cache-{world.size}", folder / f"cache-{world.size}"):
        makes = extractor(model, batch_size=4, world=world, cache=cache)
        images = makes.images(shown)
        captioned = makes.captioned(Data.of("y", SampleSet([several])), CaptionReader())
        classifier = makes.classifier(["a", "b", "c"], ["the {}"])
        found += [images.penultimate, torch.from_numpy(images.numbers), *captioned[:3], classifier]
    return found


def test_ranks_share_the_work_and_have_what_one_process_has(tiny_model, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    files = pairs(tmp_path, 30, bad=[9, 10]), pairs(tmp_path, 12)
    alone = of_a_rank(tiny_model, tmp_path, *files)
    torch.set_num_threads(before)
    for ranks in run_ranks(2, of_a_rank, tiny_model, tmp_path, *files):
        assert len(ranks) == len(alone)
        for one, other in zip(ranks, alone, strict=True):
            assert torch.equal(one, other)


def test_a_batch_that_does_not_fit_is_halved_and_none_is_lost(model, tmp_path, monkeypatch, caplog):
    makes = extractor(model, batch_size=None)
    encode, sizes = makes.encoder.penultimate, []

    def short_of_memory(batch):
        sizes.append(batch.samples)
        if batch.samples > 3 and len(sizes) % 2 == 0:
            raise torch.OutOfMemoryError
        return encode(batch)

    monkeypatch.setattr("clipfast.eval.extract.fastest_batch_size", lambda *_: 16)
    makes.encoder.penultimate = short_of_memory
    with caplog.at_level(logging.WARNING, "clipfast.eval"):
        found = makes.images(Data.of("x", SampleSet([counted(tmp_path)])))
    assert sizes == [16, 4, 8, 8, 4, 4, *[2] * 10]
    assert caplog.messages[-1] == "batch size: 2 from here on: memory is short"
    assert_close(makes.projected(found.penultimate), expected_images(model, range(20)))
    fixed = extractor(model, batch_size=8)
    fixed.encoder.penultimate = short_of_memory
    with pytest.raises(UserError, match="--batch-size: expected batches that the device's memory"):
        fixed.images(Data.of("x", SampleSet([counted(tmp_path)])))


@pytest.mark.parametrize(("room", "expected"), [(20, {8, 16}), (8, {8}), (5, {4}), (1, {1})])
def test_the_batch_size_that_is_found_fits(room, expected):
    def encode(size):
        if size > room:
            raise torch.OutOfMemoryError
        torch.randn(size * 200, 200) @ torch.randn(200, 200)

    assert fastest_batch_size(encode, CPU, 1000) in expected


def test_a_batch_is_no_larger_than_the_data_and_one_image_must_fit():
    assert fastest_batch_size(lambda size: None, CPU, 3) == 3

    def encode(size):
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="--device: expected memory for an image"):
        fastest_batch_size(encode, CPU, 1000)


def test_labels_follow_the_images_that_are_left(model, tmp_path):
    folder = classes(tmp_path / "own", {"a": [1, 2, 3], "b": [4, 5]})
    (tmp_path / "own" / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    images = open_class_folder(tmp_path / "own")
    found = extractor(model).images(Data.of(folder, images.samples))
    assert images.labels[found.numbers].tolist() == [0, 0, 1, 1]
    unit = F.normalize(expected_images(model, [1, 3, 4, 5]), dim=1)
    assert_close(extractor(model).projected(found.penultimate), unit)
    assert found.numbers.dtype == np.int64
