"""Parquet files: paths or images, in whichever columns and types people keep them."""

import itertools
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfast.data.sources.row_files import ROWS
from clipfast.data.sources.row_groups import RowGroups
from clipfast.data.sources.samples import Place, UnusableError
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tables import ParquetSource
from clipfast.errors import UserError

IMAGES = [f"image {i}".encode() for i in range(7)]
TEXTS = [f"caption {i}" for i in range(7)]


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with seven images."""
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.jpg").write_bytes(image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, columns, rows_per_group=3):
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return str(path)


def all_of(source):
    samples = [source.read(i) for i in range(int(source.counts.sum()))]
    return [s.image for s in samples], [[c.decode() for c in s.captions] for s in samples]


def reason(source, number):
    with pytest.raises(UnusableError) as error:
        source.read(number)
    assert error.value.place == source.place(number)
    return str(error.value)


IMAGE_COLUMNS = {
    "paths": pa.array([f"{i}.jpg" for i in range(7)]),
    "large paths": pa.array([f"{i}.jpg" for i in range(7)], pa.large_string()),
    "dictionary": pa.array([f"{i}.jpg" for i in range(7)]).dictionary_encode(),
    "bytes": pa.array(IMAGES),
    "large bytes": pa.array(IMAGES, pa.large_binary()),
    "structs": pa.array([{"bytes": image, "path": "x.jpg"} for image in IMAGES]),
    "structs of paths": pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(7)]).cast(
        pa.struct({"bytes": pa.binary(), "path": pa.string()})
    ),
}
CAPTION_COLUMNS = {
    "texts": pa.array(TEXTS),
    "large texts": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "lists": pa.array([[text] * i for i, text in enumerate(TEXTS, 1)]),
    "large lists": pa.array([[text] * 2 for text in TEXTS], pa.large_list(pa.string())),
    "fixed lists": pa.array([[text] * 2 for text in TEXTS], pa.list_(pa.string(), 2)),
}


@pytest.mark.parametrize(
    ("image", "caption"), list(itertools.product(IMAGE_COLUMNS, CAPTION_COLUMNS)), ids=str
)
def test_every_type_of_column_gives_the_same_samples(here, storage, image, caption):
    columns = {"other": list(range(7)), "TEXT": CAPTION_COLUMNS[caption]}
    path = write(here / "t.parquet", columns | {"image": IMAGE_COLUMNS[image]})
    images, captions = all_of(ParquetSource(path, storage))
    assert images == IMAGES
    expected = CAPTION_COLUMNS[caption].to_pylist()
    assert captions == [texts if isinstance(texts, list) else [texts] for texts in expected]


def test_what_datasets_writes_is_read(here, storage):
    import datasets

    features = datasets.Features(image=datasets.Image(decode=False), text=datasets.Value("string"))
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "text": TEXTS}
    datasets.Dataset.from_dict(rows, features).to_parquet(here / "t.parquet")
    images, captions = all_of(ParquetSource(str(here / "t.parquet"), storage))
    assert (images, captions) == (IMAGES, [[text] for text in TEXTS])


@pytest.mark.parametrize("image", ["paths", "bytes", "structs"])
def test_rows_that_lack_something_spoil_no_other(here, storage, image):
    images = IMAGE_COLUMNS[image].to_pylist()
    images[1] = None
    columns = {
        "image": pa.array(images, IMAGE_COLUMNS[image].type),
        "caption": [["x"], ["x"], None, [None, "y"], [], ["z", "z"], [None]],
    }
    source = ParquetSource(write(here / "t.parquet", columns), storage)
    assert [reason(source, i) for i in (1, 2, 4, 6)] == ["no image", *["no caption"] * 3]
    assert source.read(0).image == IMAGES[0]
    assert source.read(3).captions == (b"y",)
    assert source.read(5).captions == (b"z", b"z")


def test_captions_alone_are_read_without_their_images(here, storage):
    path = write(here / "t.parquet", {"image": IMAGES, "text": TEXTS})
    sample = ParquetSource(path, storage).read(4, image=False)
    assert sample == (b"", (b"caption 4",), Place(path, 4, "4"))


def test_columns_are_found_by_their_flags(here, storage):
    path = write(here / "t.parquet", {"image": IMAGES, "a": ["0.jpg"] * 7, "b": TEXTS})
    source = ParquetSource(path, storage, image_key="a", caption_key="b")
    assert source.read(3).image == IMAGES[0]
    with pytest.raises(UserError, match=r"--csv-caption-key\); got 'image', 'a', 'b'$"):
        ParquetSource(path, storage)
    with pytest.raises(UserError, match=r"expected a column 'c' \(--csv-img-key\)"):
        ParquetSource(path, storage, image_key="c")


@pytest.mark.parametrize("columns", [{"image": [1], "text": ["x"]}, {"image": [b"x"], "text": [1]}])
def test_a_column_of_another_type_is_refused(here, storage, columns):
    with pytest.raises(UserError, match="got int64"):
        ParquetSource(write(here / "t.parquet", columns), storage)


def test_several_files_follow_each_other(here, storage):
    (here / "data").mkdir()
    for i in range(3):
        columns = {"image": IMAGES[2 * i : 2 * i + 2], "text": TEXTS[2 * i : 2 * i + 2]}
        write(here / "data" / f"train-0000{i}-of-00003.parquet", columns)
    (here / "data" / ".hidden.parquet").write_bytes(b"")
    for pattern in ("data", "data/train-0000{0..2}-of-00003.parquet", "data/train-*.parquet"):
        source = ParquetSource(pattern, storage)
        assert all_of(source)[0] == IMAGES[:6]
        assert source.place(3) == Place("data/train-00001-of-00003.parquet", 1, "1")


def test_a_folder_of_several_splits_is_refused(here, storage):
    for split in ("train", "test"):
        write(here / f"{split}-00000-of-00001.parquet", {"image": IMAGES, "text": TEXTS})
    with pytest.raises(
        UserError, match=r"files of one split; got test, train: .*train-\*\.parquet"
    ):
        ParquetSource(str(here), storage)


@pytest.mark.parametrize("kind", ["paths", "bytes"])
@pytest.mark.parametrize("left", [0, 3, -10])
def test_a_truncated_file_is_one_sentence(here, storage, kind, left):
    path = write(here / "t.parquet", {"image": IMAGE_COLUMNS[kind], "text": TEXTS})
    os.truncate(path, left if left >= 0 else os.path.getsize(path) + left)
    with pytest.raises(UserError, match=r"t\.parquet: expected a whole parquet file"):
        ParquetSource(path, storage)


@pytest.mark.parametrize("kind", ["paths", "bytes"])
def test_a_damaged_page_is_named(here, storage, kind):
    """Of images the other row groups are still read."""
    path = write(here / "t.parquet", {"image": IMAGE_COLUMNS[kind], "text": TEXTS})
    column = pq.read_metadata(path).row_group(1).column(0)
    with open(path, "r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * column.total_compressed_size)
    if kind == "paths":
        with pytest.raises(UserError, match="cannot be read after row 0"):
            ParquetSource(path, storage)
        return
    source = ParquetSource(path, storage)
    assert reason(source, 4).startswith("row group 1 cannot be read")
    assert [source.read(i).image for i in (2, 6)] == [IMAGES[2], IMAGES[6]]


@pytest.mark.parametrize("pattern", ["gone.parquet", "gone-{0..3}.parquet", "gone-*.parquet"])
def test_files_that_are_not_there_are_one_sentence(here, storage, pattern):
    with pytest.raises(UserError, match=r"gone.*\.parquet: no such file"):
        ParquetSource(pattern, storage)


def test_a_shard_is_a_row_group(here, storage):
    source = ParquetSource(write(here / "t.parquet", {"image": IMAGES, "text": TEXTS}), storage)
    assert source.counts.tolist() == [3, 3, 1]


def test_another_order_of_images_has_another_fingerprint(here, storage):
    sizes = [b"x" * i for i in range(7)]
    prints = set()
    for images in (sizes, sizes[::-1], ["a", "b", "c", "d", "e", "f", "g"], list("abcdegf")):
        path = write(here / "t.parquet", {"image": images, "text": TEXTS})
        prints.add(ParquetSource(path, storage).fingerprint)
        assert ParquetSource(path, storage).fingerprint in prints
    assert len(prints) == 4


def test_paths_of_many_row_groups_are_found_by_number(here, storage):
    rows = 2 * ROWS + 5
    columns = {
        "path": [f"{i}.jpg" for i in range(rows)],
        "text": [f"text {i}" for i in range(rows)],
    }
    source = ParquetSource(write(here / "t.parquet", columns, rows_per_group=777), storage)
    for i in (0, 776, ROWS - 1, ROWS, rows - 1):
        assert source.read(i, image=False).captions == (f"text {i}".encode(),)
        assert source.place(i).key == f"{i}.jpg"


def test_images_by_url_in_files_by_url(here, storage):
    import fsspec

    files = fsspec.filesystem("memory")
    local = write(here / "t.parquet", {"image": IMAGES, "text": TEXTS})
    files.pipe("/parquet/t.parquet", Path(local).read_bytes())
    source = ParquetSource("memory://parquet/t.parquet", storage)
    assert all_of(source)[0] == IMAGES
    # Fetched whole, so read whole.
    assert source.counts.tolist() == [7]
    files.pipe("/parquet/a.jpg", b"remote")
    urls = ["memory://parquet/a.jpg", "memory://parquet/gone.jpg"]
    source = ParquetSource(write(here / "u.parquet", {"url": urls, "text": TEXTS[:2]}), storage)
    assert source.read(0).image == b"remote"
    assert "gone.jpg" in reason(source, 1)


def test_opening_a_file_by_url_again_does_not_fetch_it(here, storage):
    import fsspec

    local = write(here / "t.parquet", {"image": IMAGES, "text": TEXTS})
    fsspec.filesystem("memory").pipe("/again/t.parquet", Path(local).read_bytes())
    first = ParquetSource("memory://again/t.parquet", storage)
    for file in (here / "cache" / "files").iterdir():
        file.unlink()
    second = ParquetSource("memory://again/t.parquet", storage)
    assert second.fingerprint == first.fingerprint
    assert not list((here / "cache" / "files").iterdir())
    assert second.read(6).image == IMAGES[6]


def test_row_groups_are_read_once_for_many_threads_and_leave_when_the_room_is_full(here, storage):
    path = write(here / "t.parquet", {"image": IMAGES, "text": TEXTS})
    source = ParquetSource(path, storage)
    table = source._tables[0]
    groups = table._groups = RowGroups(limit=150)
    reads = []
    real = table._read
    table._read = lambda group, *, image: reads.append(group) or real(group, image=image)
    barrier = threading.Barrier(8)

    def read():
        barrier.wait()
        assert source.read(1).image == IMAGES[1]

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [0]
    for number in (2, 4, 5, 1):
        assert source.read(number).image == IMAGES[number]
    assert reads == [0, 1, 0]
    assert sum(group.result().bytes for group in groups._groups.values()) == groups._bytes
