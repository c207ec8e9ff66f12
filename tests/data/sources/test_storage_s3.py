"""The same against an S3 server."""

import pytest
from servers import s3_server

from clipfast.data.sources.storage import Patience, Storage, StorageError

pytest.importorskip("s3fs")
pytest.importorskip("moto")

CONTENT = bytes(range(256)) * 300


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as client:
        client.create_bucket(Bucket="shards")
        yield client


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "cache", patience=Patience(wait=0.01, timeout=60))


def test_an_object_is_fetched_whole_and_known_by_its_etag(s3, storage):
    etag = s3.put_object(Bucket="shards", Key="train/0.tar", Body=CONTENT)["ETag"]
    assert storage.identity("s3://shards/train/0.tar") == (len(CONTENT), etag)
    assert storage.local("s3://shards/train/0.tar").read_bytes() == CONTENT


def test_a_missing_object_bucket_and_a_folder_are_named(s3, storage):
    s3.put_object(Bucket="shards", Key="train/1.tar", Body=b"1")
    with pytest.raises(StorageError, match=r"s3://shards/none\.tar: no such file"):
        storage.local("s3://shards/none.tar")
    with pytest.raises(StorageError, match=r"s3://absent/0\.tar: no such file"):
        storage.local("s3://absent/0.tar")
    with pytest.raises(StorageError, match="s3://shards/train: expected a file; got a folder"):
        storage.local("s3://shards/train")
