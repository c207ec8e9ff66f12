"""Folders: what belongs together is found, and what is left over is named."""

import os

import pytest

from clipfast.data.sources.folder import FolderSource
from clipfast.data.sources.samples import Fault, Place, UnusableError
from clipfast.errors import UserError


def put(folder, **files):
    """`a__b=b"x"` puts x into the file a.b; "/" in a name makes folders."""
    return put_all(folder, {name.replace("__", "."): text for name, text in files.items()})


def put_all(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def keys(source):
    return [source.place(i).key for i in range(int(source.counts.sum()))]


def reasons(source):
    return {fault.place.key: fault.reason for fault in source.faults()}


def test_images_and_captions_side_by_side_in_the_order_of_their_paths(tmp_path):
    files = {
        "b/2.PNG": b"image 2",
        "b/2.TXT": b"two",
        "b/1.webp": b"image 1",
        "b/1.json": b'{"caption": "one"}',
        "a.b.jpeg": b"image ab",
        "a.b.txt": b"a and b",
        "z.jpg": b"image z",
        "z.txt": b"last of its folder",
        "b/c/0.jpg": b"image 0",
        "b/c/0.txt": b"zero",
    }
    source = FolderSource(put_all(tmp_path, files))
    assert keys(source) == ["a.b.jpeg", "z.jpg", "b/1.webp", "b/2.PNG", "b/c/0.jpg"]
    samples = [source.read(i) for i in range(5)]
    assert [s.image for s in samples] == [b"image " + x for x in (b"ab", b"z", b"1", b"2", b"0")]
    assert [s.captions for s in samples[2:4]] == [(b'{"caption": "one"}',), (b"two",)]
    assert source.read(3, image=False) == (b"", (b"two",), Place(str(tmp_path), 3, "b/2.PNG"))
    assert not reasons(source)


@pytest.mark.parametrize(("prefer_json", "caption"), [(False, b"text"), (True, b"[]")])
def test_of_two_captions_one_is_taken(tmp_path, prefer_json, caption):
    put(tmp_path, a__jpg=b"image", a__txt=b"text", a__json=b"[]")
    source = FolderSource(str(tmp_path), prefer_json=prefer_json)
    assert source.read(0).captions == (caption,)


def test_what_is_left_over_is_named(tmp_path):
    put(tmp_path, a__jpg=b"x", a__txt=b"x", a__png=b"x", b__jpg=b"x", c__txt=b"x", d__gif=b"x")
    source = FolderSource(put_all(tmp_path, {".e.jpg": b"x", ".git/f.jpg": b"x"}))
    assert keys(source) == ["a.jpg"]
    assert reasons(source) == {
        "a.png": "its caption is another image's of this name",
        "b.jpg": "no caption (.txt or .json) beside it, nor in any metadata",
        "c.txt": "no image of this name beside it",
    }


def test_faults_are_listed_up_to_a_thousand_and_then_counted(tmp_path):
    put(tmp_path, a__jpg=b"x", a__txt=b"x")
    for i in range(1234):
        (tmp_path / f"{i:04}.jpg").touch()
    faults = list(FolderSource(str(tmp_path)).faults())
    assert len(faults) == 1001
    place = Place(str(tmp_path), -1, "")
    assert faults[-1] == Fault(place, "234 more files of the folder cannot be used")


def test_links_are_followed_to_files_inside_the_folder_only(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_bytes(b"secret")
    root = tmp_path / "set"
    put_all(root, {"a.jpg": b"image a", "a.txt": b"a", "b.txt": b"b", "d.jpg": b"d", "e.jpg": b"e"})
    (root / "b.jpg").symlink_to("a.jpg")
    (root / "d.txt").symlink_to(outside)
    (root / "e.txt").symlink_to("nothing.txt")
    (root / "loop.txt").symlink_to("loop.txt")
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to("..")
    (tmp_path / "link").symlink_to(root)
    source = FolderSource(str(tmp_path / "link"))
    assert [source.read(i).image for i in range(2)] == [b"image a"] * 2
    assert keys(source) == ["a.jpg", "b.jpg"]
    found = reasons(source)
    assert found["d.txt"] == "a link that leads out of the folder"
    assert found["e.txt"] == found["loop.txt"] == "a link to no file"
    assert found["sub/up"] == "a link to a folder, which is not followed"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_hugging_face_metadata_in_any_folder(tmp_path, kind):
    csv = 'file_name,text\n1.jpg,"one, 1"\nsub/2.jpg,\ngone.jpg,x\n../0.jpg,x\n3.jpg,a,b\n'
    jsonl = (
        '{"file_name": "1.jpg", "text": "one, 1"}\n\n{"file_name": "sub/2.jpg", "text": ""}\n'
        '{"file_name": "gone.jpg", "text": "x"}\n{"file_name": "../0.jpg", "text": "x"}\n'
        '{"file_name": '
    )
    files = {
        f"train/metadata.{kind}": (csv if kind == "csv" else jsonl).encode(),
        "train/1.jpg": b"image 1",
        "train/sub/2.jpg": b"image 2",
        "0.jpg": b"image 0",
        "0.txt": b"zero",
    }
    source = FolderSource(put_all(tmp_path, files))
    assert keys(source) == ["0.jpg", "train/1.jpg", "train/sub/2.jpg"]
    assert [source.read(i).captions for i in range(3)] == [(b"zero",), (b"one, 1",), (b"",)]
    found = list(source.faults())
    assert [(fault.place.key, fault.reason.split(";")[0]) for fault in found] == [
        (f"train/metadata.{kind}", "row 3: expected a file inside the folder"),
        (
            f"train/metadata.{kind}",
            "row 4: expected 2 fields" if kind == "csv" else "row 4: expected a JSON object",
        ),
        ("train/gone.jpg", "no such file, though the metadata names it"),
    ]


def test_metadata_with_several_captions_and_odd_ones(tmp_path):
    lines = (
        b'{"file_name": "1.jpg", "captions": ["a", "b", null]}\n'
        b'{"file_name": "2.jpg", "captions": null}\n'
        b'{"file_name": "3.jpg", "captions": "caf\xe9 \\ud800"}\n'
        b'{"file_name": "4.jpg"}\n'
    )
    images = {f"{i}.jpg": b"x" for i in range(1, 5)}
    source = FolderSource(put_all(tmp_path, images | {"metadata.jsonl": lines}))
    assert source.read(0).captions == (b"a", b"b")
    with pytest.raises(UnusableError, match="no caption") as error:
        source.read(1)
    assert error.value.place == source.place(1)
    with pytest.raises(UnicodeDecodeError):
        source.read(2).captions[0].decode()
    assert reasons(source)["metadata.jsonl"].startswith("row 3: expected file_name and one of text")


def test_names_that_are_no_utf8_are_read(tmp_path):
    root = os.fsencode(tmp_path)
    for name, content in ((b"caf\xe9.jpg", b"image"), (b"caf\xe9.txt", b"text")):
        with open(os.path.join(root, name), "wb") as file:
            file.write(content)
    sample = FolderSource(str(tmp_path)).read(0)
    assert sample == (b"image", (b"text",), Place(str(tmp_path), 0, "caf\ufffd.jpg"))


def test_what_has_gone_since_is_unusable(tmp_path):
    source = FolderSource(put(tmp_path, a__jpg=b"x", a__txt=b"x", b__jpg=b"x", b__txt=b"x"))
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.txt").unlink()
    for number in range(2):
        with pytest.raises(UnusableError, match="no such file") as error:
            source.read(number)
        assert error.value.place == source.place(number)
    assert source.read(0, image=False).captions == (b"x",)
    assert source.fingerprint


def test_the_fingerprint_goes_by_names_and_sizes(tmp_path):
    put(tmp_path, a__jpg=b"x", a__txt=b"x")
    first = FolderSource(str(tmp_path)).fingerprint
    assert FolderSource(str(tmp_path)).fingerprint == first
    prints = {first}
    for change in ({"a.jpg": b"xx"}, {"a.txt": b"xx"}, {"b.jpg": b"x", "b.txt": b"x"}):
        prints.add(FolderSource(put_all(tmp_path, change)).fingerprint)
    assert len(prints) == 4


def test_a_folder_without_pairs_is_one_sentence(tmp_path):
    put(tmp_path, a__jpg=b"x")
    with pytest.raises(UserError, match=r"and 1 that cannot be used, first a\.jpg: no capt"):
        FolderSource(str(tmp_path))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UserError, match="metadata.jsonl; got none$"):
        FolderSource(str(tmp_path))
    with pytest.raises(UserError, match="gone: no such folder"):
        FolderSource(str(tmp_path / "gone"))


def test_a_folder_deeper_than_any_recursion(tmp_path):
    folder = tmp_path
    for _ in range(1200):
        folder = folder / "d"
        os.mkdir(folder)
    for name in ("a.jpg", "a.txt"):
        (folder / name).write_bytes(b"x")
    assert keys(FolderSource(str(tmp_path))) == ["d/" * 1200 + "a.jpg"]
    # What removes temporary folders calls itself for each one.
    for name in ("a.jpg", "a.txt"):
        (folder / name).unlink()
    while folder != tmp_path:
        folder.rmdir()
        folder = folder.parent
