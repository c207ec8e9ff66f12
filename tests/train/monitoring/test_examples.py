"""The examples of a run: what the model is shown, written once."""

import json

import numpy as np
import torch
from loading import loader_of
from PIL import Image

from clipfast.data.sources.sample_set import SampleSet
from clipfast.data.sources.shard_writer import ShardWriter
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
from clipfast.train.monitoring.examples import save_examples


def test_examples_are_the_first_steps_pixels_and_captions(digit_shards, tmp_path):
    loader = loader_of(digit_shards.samples("train"), tmp_path)
    save_examples(tmp_path / "examples", loader)
    entries = json.loads((tmp_path / "examples" / "examples.json").read_text())
    batch = loader.batch(0, 0)
    assert [int(entry["file"].removesuffix(".png")) for entry in entries] == batch.numbers.tolist()
    for entry, pixels in zip(entries, batch.images, strict=True):
        image = np.asarray(Image.open(tmp_path / "examples" / entry["file"]))
        assert torch.equal(torch.from_numpy(image.copy()).permute(2, 0, 1), pixels)
        assert len(entry["caption"].split()) > 2
        assert entry["shard"].endswith(".tar")


def test_examples_of_an_earlier_start_stay_and_what_cannot_be_used_is_left_out(
    digit_shards, tmp_path
):
    good = digit_shards.samples("train").read(0)
    with ShardWriter(tmp_path / "shards", "x", samples_per_shard=10) as writer:
        writer.write(good.image, "good")
        writer.write(good.image[:100], "cut")
        writer.write(good.image, " ")
    samples = SampleSet([TarSource(str(writer.shards[0]), Storage())])
    folder = tmp_path / "examples"
    save_examples(folder, loader_of(samples, tmp_path, batch_size=3))
    (entry,) = json.loads((folder / "examples.json").read_text())
    assert entry["caption"] == "good"
    save_examples(folder, loader_of(digit_shards.samples("train"), tmp_path))
    assert json.loads((folder / "examples.json").read_text()) == [entry]
