"""Tables of text: the rows are pandas' rows, and what is wrong with one is said of that one."""

import gzip
import os
import resource
from pathlib import Path

import pandas
import pytest

from clipfast.data.sources.row_files import ROWS
from clipfast.data.sources.samples import Place, UnusableError
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tables import CsvSource
from clipfast.errors import UserError

AWKWARD = (
    "\ufefffilepath,title,more\r\n"
    'a.jpg,"two\r\nlines, and ""marks""",1\r\n'
    "b.jpg,NA,2\n"
    'c.jpg,in"side,3\r'
    "\n"
    "   \n"
    "ünï/d.jpg,日本語 🙂,\n"
    "e.jpg\n"
    'f.jpg,"closed"and more,6\n'
    ",null,7\n"
    "h.jpg,007,8"
)


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "cache")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with three images."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def text_of(source):
    return [
        (source.place(i).key, source.read(i, image=False).captions[0].decode())
        for i in range(int(source.counts.sum()))
    ]


def reason(source, number):
    with pytest.raises(UnusableError) as error:
        source.read(number)
    assert error.value.place == source.place(number)
    return str(error.value)


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_rows_are_those_of_pandas(tmp_path, storage, separator):
    path = write(tmp_path / "t.csv", AWKWARD.replace(",", separator))
    expected = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False).fillna("")
    assert len(expected) == 8
    source = CsvSource(path, storage, separator=separator)
    assert text_of(source) == list(zip(expected["filepath"], expected["title"], strict=True))


def test_a_separator_outside_ascii(tmp_path, storage):
    path = write(tmp_path / "t.csv", "filepath¦title\na.jpg¦café\n")
    assert text_of(CsvSource(path, storage, separator="¦")) == [("a.jpg", "café")]


def test_a_first_row_longer_than_the_header_begins_with_an_index_as_in_pandas(tmp_path, storage):
    path = write(tmp_path / "t.csv", "filepath\ttitle\n0\ta.jpg\tone\n1\tb.jpg\ttwo\n")
    frame = pandas.read_csv(path, sep="\t")
    expected = list(zip(frame["filepath"], frame["title"], strict=True))
    assert text_of(CsvSource(path, storage)) == expected == [("a.jpg", "one"), ("b.jpg", "two")]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.csv"])
def test_a_compressed_table_is_read_like_any_other(here, storage, name):
    text = b"filepath\ttitle\na.jpg\tone\n"
    path = write(here / name, gzip.compress(text) if name.endswith("gz") else text)
    sample = CsvSource(path, storage).read(0)
    assert sample == (b"a.jpg", (b"one",), Place(path, 0, "a.jpg"))


def test_a_separator_as_a_shell_passes_it(here, storage):
    path = write(here / "t.csv", "filepath\ttitle\na.jpg\tone\n")
    assert text_of(CsvSource(path, storage, separator="\\t")) == [("a.jpg", "one")]


@pytest.mark.parametrize("separator", ["", "::", '"', "\n"])
def test_a_separator_that_cannot_be_one_is_refused(here, storage, separator):
    path = write(here / "t.csv", "filepath\ttitle\na.jpg\tone\n")
    with pytest.raises(UserError, match="--csv-separator: expected one character"):
        CsvSource(path, storage, separator=separator)


def test_a_caption_that_is_no_utf8_spoils_no_other(here, storage):
    path = write(here / "t.csv", b"filepath\ttitle\na.jpg\tcaf\xe9\nb.jpg\tcaf\xc3\xa9\n")
    source = CsvSource(path, storage)
    assert [source.read(i).captions for i in (0, 1)] == [(b"caf\xe9",), (b"caf\xc3\xa9",)]


def test_a_row_of_too_many_fields_spoils_no_other(here, storage):
    path = write(here / "t.csv", "filepath\ttitle\na.jpg\tone\nb.jpg\tt\two\nc.jpg\tthree\n")
    source = CsvSource(path, storage)
    assert reason(source, 1) == "expected 2 fields; got 3"
    assert source.read(2).captions == (b"three",)


def test_images_that_cannot_be_had_are_named_with_their_row(here, storage):
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    os.truncate(write(here / "huge", b"x"), 300_000_000)
    names = ["a.jpg", "gone.jpg", "folder", "pipe", "huge", "", "a.jpg/b.jpg", "n\0ul", "x" * 300]
    path = write(here / "t.csv", "filepath\ttitle\n" + "".join(f"{n}\ttext\n" for n in names))
    source = CsvSource(path, storage)
    assert source.read(0).image == b"a.jpg"
    assert [reason(source, i) for i in range(1, len(names))] == [
        "no such file",
        "expected a file; got a folder",
        "expected a file; got no regular file",
        "expected at most 256.0 MB; got 300.0 MB",
        "no image",
        "no such file",
        "no file can have this name",
        "cannot be read: File name too long",
    ]
    assert source.place(1) == Place(path, 1, "gone.jpg")
    assert source.read(1, image=False).captions == (b"text",)


def test_an_image_by_a_url_that_fails_is_unusable(here, storage):
    path = write(here / "t.csv", "filepath\ttitle\nmemory://nowhere/a.jpg\ttext\n")
    assert "memory://nowhere/a.jpg" in reason(CsvSource(path, storage), 0)


def test_a_table_and_images_by_url(here, tmp_path, storage):
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/set/t.csv", b"filepath\ttitle\nx/a.jpg\tone\nmemory://set/b.jpg\ttwo\n")
    files.pipe("/set/x/a.jpg", b"image a")
    files.pipe("/set/b.jpg", b"image b")
    source = CsvSource("memory://set/t.csv", storage)
    assert [source.read(i).image for i in (0, 1)] == [b"image a", b"image b"]
    assert list((tmp_path / "cache" / "rows").glob("*.clipfast-rows"))


def test_relative_paths_start_from_the_current_folder_or_else_from_the_tables(here, storage):
    (here / "data").mkdir()
    (here / "data" / "b.jpg").write_bytes(b"beside the table")
    (here / "data" / "d.jpg").write_bytes(b"beside the table")
    text = "filepath\ttitle\n" + "".join(f"{n}.jpg\ttext\n" for n in "zbd")
    path = write(here / "data" / "t.csv", text)
    # b.jpg is in both, and decides for all.
    source = CsvSource(path, storage)
    assert source.read(1).image == b"b.jpg"
    assert reason(source, 2) == "no such file"
    (here / "b.jpg").unlink()
    source = CsvSource(path, storage)
    assert [source.read(i).image for i in (1, 2)] == [b"beside the table"] * 2


def test_a_missing_column_is_named_beside_those_there_are(here, storage):
    path = write(here / "t.csv", "url\ttitle\na.jpg\tone\n")
    with pytest.raises(UserError, match=r"'filepath' \(--csv-img-key\); got 'url', 'title'$"):
        CsvSource(path, storage)
    with pytest.raises(UserError, match=r"'text' \(--csv-caption-key\)"):
        CsvSource(path, storage, image_key="url", caption_key="text")


def test_the_wrong_separator_is_told(here, storage):
    path = write(here / "t.csv", "filepath,title\na.jpg,one\n")
    with pytest.raises(UserError, match=r"separated by ',' \(--csv-separator\)"):
        CsvSource(path, storage)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a header; got an empty file"),
        (b'filepath\ttitle\na.jpg\tone\nb.jpg\t"two\nc.jpg\tthree\n', "row 1: a quotation mark"),
        (
            gzip.compress(b"filepath\ttitle\n" + os.urandom(4000).hex().encode())[:-2000],
            "cannot be",
        ),
    ],
)
def test_a_damaged_table_is_one_sentence(here, storage, content, message):
    path = write(here / ("t.csv.gz" if content[:1] == b"\x1f" else "t.csv"), content)
    with pytest.raises(UserError, match=message):
        CsvSource(path, storage)
    assert not list(here.glob("*.partial")) + list(here.glob("*.lock"))


def test_a_table_that_is_not_there_is_one_sentence(here, storage):
    with pytest.raises(UserError, match=r"gone\.csv: no such file"):
        CsvSource("gone.csv", storage)


def test_rows_are_kept_and_made_anew_when_the_table_changes(here, storage):
    path = write(here / "t.csv", "filepath\ttitle\na.jpg\tone\n")
    first = CsvSource(path, storage)
    kept = here / "t.csv.clipfast-rows"
    made = kept.stat().st_mtime_ns
    assert CsvSource(path, storage).fingerprint == first.fingerprint
    assert kept.stat().st_mtime_ns == made
    write(here / "t.csv", "filepath\ttitle\na.jpg\tother\n")
    second = CsvSource(path, storage)
    assert second.read(0).captions == (b"other",)
    assert second.fingerprint != first.fingerprint
    with pytest.raises(UserError, match="made anew"):
        first.read(0)


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "offsets"])
def test_damaged_kept_rows_are_made_anew_or_refused(here, storage, damage):
    path = write(here / "t.csv", "filepath\ttitle\n" + "a.jpg\tone\n" * 100)
    CsvSource(path, storage)
    kept = here / "t.csv.clipfast-rows"
    content = kept.read_bytes()
    if damage == "offsets":
        at = content.index(b"a.jpga.jpg") - 64
        kept.write_bytes(content[:at] + b"\xff" * 64 + content[at + 64 :])
        with pytest.raises(UserError, match="remove the file, and it is made anew"):
            CsvSource(path, storage).read(50)
        return
    kept.write_bytes({"empty": b"", "cut": content[:-100], "garbage": b"garbage" * 99}[damage])
    assert CsvSource(path, storage).read(99).captions == (b"one",)
    assert kept.read_bytes() == content


def test_rows_are_kept_in_the_cache_or_nowhere_where_the_folder_takes_none(here, tmp_path, storage):
    path = write(here / "t.csv", "filepath\ttitle\na.jpg\tone\n")
    (here / "t.csv.clipfast-rows").mkdir()
    assert CsvSource(path, storage).read(0).captions == (b"one",)
    (kept,) = (tmp_path / "cache" / "rows").iterdir()
    kept.unlink()
    kept.mkdir()
    source = CsvSource(path, storage)
    assert source.read(0).captions == (b"one",)
    held = source._tables[0]._rows.path
    assert held.exists()
    del source
    assert not held.exists()


def test_rows_of_several_batches_are_all_there(here, storage):
    rows = 2 * ROWS + 3
    text = "".join(f"{i}.jpg\tcaption {i}\n" for i in range(rows))
    source = CsvSource(write(here / "t.csv", "filepath\ttitle\n" + text), storage)
    assert int(source.counts.sum()) == rows
    for i in (0, ROWS - 1, ROWS, 2 * ROWS, rows - 1):
        assert source.read(i, image=False).captions == (f"caption {i}".encode(),)
        assert source.place(i).offset == i


@pytest.mark.slow
def test_ten_million_rows_do_not_live_in_memory(tmp_path, storage):
    path = tmp_path / "t.csv"
    with open(path, "w") as file:
        file.write("filepath\ttitle\n")
        for start in range(0, 10_000_000, 100_000):
            file.write("".join(f"{i}.jpg\tcaption {i}\n" for i in range(start, start + 100_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = CsvSource(str(path), storage)
    assert source.read(9_999_999, image=False).captions == (b"caption 9999999",)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert Path(f"{path}.clipfast-rows").stat().st_size < 2 * path.stat().st_size
