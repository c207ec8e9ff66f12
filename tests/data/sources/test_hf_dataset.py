"""Datasets that `datasets` itself wrote: images come as they were encoded, captions as written."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from clipfast.data.sources.hf_dataset import HFDatasetSource
from clipfast.data.sources.samples import Place, UnusableError
from clipfast.errors import UserError

datasets = pytest.importorskip("datasets")


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


JPEGS = [jpeg(seed) for seed in range(7)]
TEXTS = [f"caption {number} ü" for number in range(7)]


def dataset_of(images=JPEGS, **columns):
    features = {"image": datasets.Image()}
    for name, values in columns.items():
        text = datasets.Value("string" if isinstance(values[0], str | list) else "int64")
        features[name] = datasets.Sequence(text) if isinstance(values[0], list) else text
    rows = {"image": [image and {"bytes": image, "path": "a.jpg"} for image in images]}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


def saved(folder, dataset, **options):
    dataset.save_to_disk(str(folder), **options)
    return str(folder)


def test_images_come_as_they_were_encoded_from_every_file(tmp_path):
    path = saved(tmp_path / "d", dataset_of(label=list(range(7)), text=TEXTS), num_shards=3)
    source = HFDatasetSource(path)
    assert source.counts.sum() == 7
    for number in range(7):
        place = Place(path, number, str(number))
        text = TEXTS[number].encode()
        assert source.read(number) == (JPEGS[number], (text,), place)
        assert source.read(number, image=False) == (b"", (text,), place)
        assert source.place(number) == place
    assert list(source.faults()) == []


def test_threads_read_the_same_as_one(tmp_path):
    source = HFDatasetSource(saved(tmp_path / "d", dataset_of(text=TEXTS), num_shards=3))
    numbers = list(range(7)) * 30
    with ThreadPoolExecutor(8) as pool:
        images = [sample.image for sample in pool.map(source.read, numbers)]
    assert images == [JPEGS[number] for number in numbers]


def test_a_list_of_texts_is_several_captions(tmp_path):
    captions = [["one", "two"], ["three", None], *[[text] for text in TEXTS[2:]]]
    source = HFDatasetSource(saved(tmp_path / "d", dataset_of(captions=captions)))
    assert source.read(0).captions == (b"one", b"two")
    assert source.read(1).captions == (b"three",)


def test_a_dict_gives_its_training_split_or_its_only_one(tmp_path):
    train, test = dataset_of(text=TEXTS), dataset_of(images=JPEGS[:2], text=TEXTS[:2])
    both = datasets.DatasetDict(train=train, test=test)
    assert HFDatasetSource(saved(tmp_path / "both", both)).counts.sum() == 7
    assert HFDatasetSource(str(tmp_path / "both" / "test")).counts.sum() == 2
    one = datasets.DatasetDict(validation=test)
    assert HFDatasetSource(saved(tmp_path / "one", one)).counts.sum() == 2
    none = datasets.DatasetDict(validation=test, test=test)
    with pytest.raises(UserError, match="expected a split train.*; got validation, test"):
        HFDatasetSource(saved(tmp_path / "none", none))


def test_a_named_column_of_captions_is_taken_before_others(tmp_path):
    dataset = dataset_of(url=["u"] * 7, text=TEXTS, title=TEXTS[::-1])
    path = saved(tmp_path / "d", dataset)
    assert HFDatasetSource(path).read(0).captions == (TEXTS[6].encode(),)
    assert HFDatasetSource(path, caption_key="url").read(0).captions == (b"u",)
    only = saved(tmp_path / "only", dataset_of(label=[1] * 7, words=TEXTS))
    assert HFDatasetSource(only).read(0).captions == (TEXTS[0].encode(),)


def test_columns_that_cannot_be_told_are_named(tmp_path):
    path = saved(tmp_path / "d", dataset_of(url=["u"] * 7, words=TEXTS, label=[1] * 7))
    with pytest.raises(UserError, match="named title, .* or txt, or only one; got url, words"):
        HFDatasetSource(path)
    with pytest.raises(UserError, match="expected a column none; got image, url, words, label"):
        HFDatasetSource(path, caption_key="none")
    with pytest.raises(UserError, match="expected texts in the column label; got int64"):
        HFDatasetSource(path, caption_key="label")
    with pytest.raises(UserError, match="expected images in the column url; got string"):
        HFDatasetSource(path, caption_key="words", image_key="url")
    bare = saved(tmp_path / "bare", dataset_of(text=TEXTS).remove_columns("image"))
    with pytest.raises(UserError, match="expected one column of images; got none among text"):
        HFDatasetSource(bare)
    again = dataset_of().rename_column("image", "again")
    two = datasets.concatenate_datasets([dataset_of(text=TEXTS), again], axis=1)
    with pytest.raises(UserError, match="expected one column of images; got image, again among"):
        HFDatasetSource(saved(tmp_path / "two", two))
    assert HFDatasetSource(str(tmp_path / "two"), image_key="image").read(1).image == JPEGS[1]


def test_a_column_of_plain_bytes_serves_as_images_by_name(tmp_path):
    dataset = datasets.Dataset.from_dict({"jpg": JPEGS, "txt": TEXTS})
    source = HFDatasetSource(saved(tmp_path / "d", dataset), image_key="jpg")
    assert source.read(3).image == JPEGS[3]


def test_rows_without_an_image_or_a_caption_are_unusable_and_others_are_not(tmp_path):
    images = [None, *JPEGS[1:]]
    texts = [TEXTS[0], None, *TEXTS[2:]]
    source = HFDatasetSource(saved(tmp_path / "d", dataset_of(images, text=texts)))
    with pytest.raises(UnusableError, match="no image") as raised:
        source.read(0)
    assert raised.value.place == source.place(0)
    with pytest.raises(UnusableError, match="no caption"):
        source.read(1)
    assert source.read(2).image == JPEGS[2]


def test_images_that_lie_beside_the_dataset_are_read_from_there(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, content in zip(paths, JPEGS, strict=False):
        path.write_bytes(content)
    rows = {"image": [*map(str, paths), "https://host/a.jpg"], "text": TEXTS[:4]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    # save_to_disk would take the bytes in.
    folder = tmp_path / "d"
    folder.mkdir()
    writer = datasets.arrow_writer.ArrowWriter(path=str(folder / "a.arrow"))
    writer.write_table(dataset.data.table)
    writer.finalize()
    dataset.info.write_to_directory(str(folder))
    state = '{"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "1"}'
    (folder / "state.json").write_text(state)
    source = HFDatasetSource(str(folder))
    assert source.read(1).image == JPEGS[1]
    paths[1].unlink()
    with pytest.raises(UnusableError, match="no such file"):
        source.read(1)
    with pytest.raises(UnusableError, match="not in the dataset, but behind a URL"):
        source.read(3)


def test_other_rows_or_columns_have_another_fingerprint(tmp_path):
    dataset = dataset_of(text=TEXTS, title=TEXTS)
    first = HFDatasetSource(saved(tmp_path / "1", dataset))
    assert HFDatasetSource(str(tmp_path / "1")).fingerprint == first.fingerprint
    other_column = HFDatasetSource(str(tmp_path / "1"), caption_key="text")
    shuffled = HFDatasetSource(saved(tmp_path / "2", dataset.shuffle(seed=1)))
    assert len({first.fingerprint, other_column.fingerprint, shuffled.fingerprint}) == 3


def test_a_folder_that_is_no_dataset_is_named(tmp_path):
    with pytest.raises(UserError, match="got a folder without state.json"):
        HFDatasetSource(str(tmp_path))
    with pytest.raises(UserError, match="absent: expected a dataset as datasets.save_to_disk"):
        HFDatasetSource(str(tmp_path / "absent"))


def test_a_damaged_dataset_is_named(tmp_path):
    path = saved(tmp_path / "d", dataset_of(text=TEXTS))
    file = next((tmp_path / "d").glob("*.arrow"))
    whole = file.read_bytes()
    for size in (0, len(whole) // 2):
        os.truncate(file, size)
        with pytest.raises(UserError, match=r"\.arrow: expected an Arrow file"):
            HFDatasetSource(path)
        file.write_bytes(whole)
    file.unlink()
    with pytest.raises(UserError, match=r"\.arrow: expected an Arrow file; got: .*No such file"):
        HFDatasetSource(path)
    (tmp_path / "d" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state\.json: expected a list of files"):
        HFDatasetSource(path)
    (tmp_path / "d" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: expected a JSON object"):
        HFDatasetSource(path)


def test_an_empty_dataset_is_refused(tmp_path):
    path = saved(tmp_path / "d", dataset_of(text=TEXTS).select([]))
    with pytest.raises(UserError, match="expected rows; got a dataset without one"):
        HFDatasetSource(path)
