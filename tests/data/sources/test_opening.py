"""What a name says of its kind."""

import pytest

from clipfast.data.sources import opening
from clipfast.errors import UserError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/{0000..0009}.tar", "webdataset"),
        ("s3://bucket/x.TAR", "webdataset"),
        ("pairs.csv", "csv"),
        ("https://host/pairs.tsv.gz", "csv"),
        ("{a,b}.parquet", "parquet"),
    ],
)
def test_the_ending_tells(name, kind):
    assert opening._kind_of(name) == kind


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("state.json", "hf"),
        ("dataset_dict.json", "hf"),
        ("a.parquet", "parquet"),
        ("a.jpg", "folder"),
    ],
)
def test_a_folders_content_tells(tmp_path, file, kind):
    (tmp_path / file).touch()
    assert opening._kind_of(str(tmp_path)) == kind


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/at/all", "no such file or folder"),
        ("x.tar.gz", "expected a name that ends in .tar, .csv"),
        ("https://host/data", "expected a name that ends in .tar, .csv"),
    ],
)
def test_what_cannot_be_told_is_a_sentence(name, sentence):
    with pytest.raises(UserError, match=sentence):
        opening._kind_of(name)


def test_a_folder_of_shards_is_told_from_a_folder_of_images(tmp_path):
    (tmp_path / "x-000003.tar").touch()
    with pytest.raises(UserError, match=r"holds 1, first x-000003.tar: name them by a brace list"):
        opening._kind_of(str(tmp_path))
