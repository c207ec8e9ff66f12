"""Remote files arrive whole or not at all, once, and within the cache's bound."""

import os
import resource
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from servers import HttpServer

from clipfast.data.sources.storage import (
    Identity,
    Patience,
    Storage,
    StorageError,
    is_remote,
    redacted,
)

KILOBYTE = 1e-6  # of a gigabyte
QUICK = Patience(wait=0.01, timeout=30)
NOT_LONG = Patience(wait=0.01, timeout=1)  # for servers that stall


def content_of(size, seed=0):
    return bytes((i * 7 + seed) % 251 for i in range(size))


@pytest.fixture
def server():
    files = {f"{name}.tar": content_of(4000, seed) for seed, name in enumerate("abcd")}
    with HttpServer(files) as running:
        yield running


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "cache", patience=QUICK)


def cached(storage):
    """Names in the cache, without what keeps two files of one name apart."""
    files = (storage.folder / "files").glob("[!.]*")
    return sorted(file.name.partition("-")[2] for file in files)


def test_what_is_remote_is_told_by_the_scheme():
    assert is_remote("s3://bucket/a.tar")
    assert is_remote("https://host/a.tar")
    assert not is_remote("/data/a.tar")
    assert not is_remote("file:///data/a.tar")
    assert not is_remote("a:b//c.tar")


def test_a_local_path_stays_as_it_is_and_makes_no_cache(tmp_path, storage):
    (tmp_path / "a.tar").write_bytes(b"12345")
    for url in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
        assert storage.local(url) == tmp_path / "a.tar"
        stamp = str((tmp_path / "a.tar").stat().st_mtime_ns)
        assert storage.identity(url) == Identity(5, stamp)
        with storage.open(url) as file:
            assert file.read() == b"12345"
    assert not storage.folder.exists()


def test_a_missing_local_file_and_a_folder_are_named(tmp_path, storage):
    with pytest.raises(StorageError, match=r"b\.tar: no such file"):
        storage.identity(str(tmp_path / "b.tar"))
    with pytest.raises(StorageError, match=r"b\.tar: no such file"):
        storage.open(str(tmp_path / "b.tar"))
    with pytest.raises(StorageError, match="expected a file; got a folder"):
        storage.identity(str(tmp_path))


def test_a_remote_file_is_fetched_once_and_found_by_another_run(server, storage):
    path = storage.local(server.url("a.tar"))
    assert path.read_bytes() == server.files["a.tar"]
    assert Storage(storage.folder, patience=QUICK).local(server.url("a.tar")) == path
    assert server.gets["a.tar"] == 1


def test_a_changed_remote_file_is_another_file(server, storage):
    server.etags["a.tar"] = '"1"'
    first = storage.local(server.url("a.tar"))
    server.etags["a.tar"] = '"2"'
    server.files["a.tar"] = content_of(4000, 99)
    later = Storage(storage.folder, patience=QUICK)
    assert later.local(server.url("a.tar")) != first
    assert later.local(server.url("a.tar")).read_bytes() == content_of(4000, 99)


def test_a_file_that_changes_during_a_run_is_refused(server, storage):
    server.etags["a.tar"] = '"1"'
    assert storage.identity(server.url("a.tar")) == Identity(4000, '"1"')
    server.etags["a.tar"] = '"2"'
    with pytest.raises(StorageError, match="there at first, of 4000 bytes.*got one of 4000 bytes"):
        storage.local(server.url("a.tar"))
    assert cached(storage) == []


def test_a_cached_file_that_lost_bytes_is_fetched_again(server, storage):
    path = storage.local(server.url("a.tar"))
    os.truncate(path, 10)
    assert storage.local(server.url("a.tar")).read_bytes() == server.files["a.tar"]


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "short", "stall"])
def test_a_failure_that_passes_is_tried_again(server, storage, fault):
    storage.patience = NOT_LONG if fault == "stall" else QUICK
    server.faults["a.tar"] = [fault, fault]
    assert storage.local(server.url("a.tar")).read_bytes() == server.files["a.tar"]
    assert server.gets["a.tar"] == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(500, "HTTP status 500"), ("short", "2000 of 4000 bytes"), ("stall", ""), ("cut", "")],
)
def test_a_failure_that_lasts_is_one_sentence(server, storage, fault, reason):
    storage.patience = NOT_LONG if fault == "stall" else QUICK
    server.faults["a.tar"] = [fault] * 9
    with pytest.raises(StorageError, match=f"in each of 4 attempts, the last time .*{reason}"):
        storage.local(server.url("a.tar"))
    assert server.gets["a.tar"] == 4
    assert cached(storage) == []


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "a.tar: no such file"),
        (403, "a.tar: expected permission to read it; got HTTP status 403"),
        (410, "a.tar: expected the file; got HTTP status 410"),
    ],
)
def test_what_no_further_attempt_would_mend_is_not_tried_again(server, storage, status, sentence):
    server.faults["a.tar"] = [status] * 9
    with pytest.raises(StorageError, match=sentence):
        storage.local(server.url("a.tar"))
    assert server.gets["a.tar"] == 1


def test_a_missing_remote_file_is_named(server, storage):
    with pytest.raises(StorageError, match=r"none\.tar: no such file"):
        storage.identity(server.url("none.tar"))


def test_a_server_that_is_not_there_is_named(server, storage):
    url = server.url("a.tar")
    server.__exit__()
    with pytest.raises(StorageError, match=r"a\.tar: expected the file; got an error in each of 4"):
        storage.local(url)


def test_a_url_that_is_signed_for_reading_alone_is_read(server, storage):
    server.head_status["a.tar"] = 403
    assert storage.local(server.url("a.tar")).read_bytes() == server.files["a.tar"]


def test_a_server_that_does_not_tell_the_size_is_refused(server, storage):
    server.with_size = False
    with pytest.raises(StorageError, match="expected a server that tells its size"):
        storage.local(server.url("a.tar"))


def test_secrets_are_sent_but_neither_shown_nor_in_names(server, storage):
    url = server.url("a.tar", user="anna:s3cret@", query="?signature=s3cret")
    path = storage.local(url)
    assert path.name.endswith("-a.tar")
    assert any(server.authorizations)
    server.faults["b.tar"] = [500] * 9
    url = server.url("b.tar", user="anna:s3cret@", query="?signature=s3cret")
    with pytest.raises(StorageError) as raised:
        storage.local(url)
    assert "s3cret" not in str(raised.value)
    assert "anna" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert redacted("hf://datasets/org/name@main/a.tar") == "hf://datasets/org/name@main/a.tar"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("gs://bucket/a.tar", "gs://bucket/a.tar: expected gcsfs .*; pip install gcsfs"),
        ("what://a.tar", "expected a kind of URL that fsspec knows; got what://"),
    ],
)
def test_a_package_that_is_missing_is_named(storage, monkeypatch, url, sentence):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match=sentence):
        storage.local(url)


def test_the_least_recently_used_files_make_room(server, tmp_path):
    storage = Storage(tmp_path / "cache", 12 * KILOBYTE, patience=QUICK)
    for name in "abcab":  # least recently used now: c
        storage.local(server.url(f"{name}.tar"))
    storage.local(server.url("d.tar"))
    assert cached(storage) == ["a.tar", "b.tar", "d.tar"]
    storage.local(server.url("a.tar"))
    storage.local(server.url("c.tar"))
    assert cached(storage) == ["a.tar", "c.tar", "d.tar"]


def test_an_open_file_stays_readable_when_another_takes_its_room(server, tmp_path):
    storage = Storage(tmp_path / "cache", 5 * KILOBYTE, patience=QUICK)
    with storage.open(server.url("a.tar")) as file:
        storage.local(server.url("b.tar"))
        assert cached(storage) == ["b.tar"]
        assert file.read() == server.files["a.tar"]


def test_a_file_larger_than_the_bound_is_refused(server, tmp_path):
    storage = Storage(tmp_path / "cache", 3 * KILOBYTE, patience=QUICK)
    with pytest.raises(StorageError, match="expected at most 3e-06 GB.*got 4e-06 GB"):
        storage.local(server.url("a.tar"))


def test_many_threads_keep_the_bound_and_fetch_a_file_once(server, tmp_path):
    storage = Storage(tmp_path / "cache", 9 * KILOBYTE, patience=QUICK)
    most = []
    ended = threading.Event()

    def look():
        while not ended.is_set():
            with storage._lock("room"):  # a folder that changes cannot be counted
                most.append(len(cached(storage)))

    watcher = threading.Thread(target=look)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda _: read(storage, server.url("a.tar")), range(8)))
        assert server.gets["a.tar"] == 1
        wanted = [f"{name}.tar" for name in "abcd" * 4]
        contents += pool.map(lambda name: read(storage, server.url(name)), wanted)
    ended.set()
    watcher.join()
    assert contents == [server.files["a.tar"]] * 8 + [server.files[name] for name in wanted]
    assert max(most) <= 2


def read(storage, url):
    with storage.open(url) as file:
        return file.read()


def fetch_in_a_child(storage, url, before=lambda: None):
    """Its exit code: 0 when the file came whole."""
    if child := os.fork():
        return child
    code = 1
    try:
        before()
        read(storage, url)
        code = 0
    finally:
        os._exit(code)


def test_processes_fetch_a_file_once(server, storage):
    children = [fetch_in_a_child(storage, server.url("a.tar")) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
    assert server.gets["a.tar"] == 1


def test_what_a_killed_process_left_is_removed(server, tmp_path):
    storage = Storage(tmp_path / "cache", 5 * KILOBYTE, patience=NOT_LONG)
    server.faults["a.tar"] = ["stall"]
    patient = Storage(storage.folder, 5 * KILOBYTE, patience=Patience(timeout=60))
    child = fetch_in_a_child(patient, server.url("a.tar"))
    while not (left := list((storage.folder / "files").glob("*.partial"))):
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert left[0].exists()
    assert read(storage, server.url("b.tar")) == server.files["b.tar"]
    assert cached(storage) == ["b.tar"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(server, storage):
    """A limit on the size of files stands for the disk's end: the write fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match="expected room for a file of 4000 bytes; got: "):
            storage.local(server.url("a.tar"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert server.gets["a.tar"] == 1
    assert cached(storage) == []


def test_a_cache_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    storage = Storage(tmp_path / "file" / "cache", patience=QUICK)
    with pytest.raises(StorageError, match="expected a cache folder that can be written"):
        storage.local(server.url("a.tar"))


def test_the_default_folder_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Storage().folder == tmp_path / "clipfast" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anna")
    assert Storage().folder == Path("/home/anna/.cache/clipfast/data")
