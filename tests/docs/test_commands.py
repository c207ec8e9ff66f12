"""Every command and every piece of Python in the documentation runs, on real data.

Trainings run with the flags that are printed, and with a small model and few steps by flags after
them; what a page writes, it alone finds. `stand_ins.py` says which programs are stood in for.
"""

import shutil
import subprocess
import sys

import pytest
import sandbox
import site_pages as pages

sys.path.insert(0, str(pages.ROOT / "tests" / "data" / "sources"))
from servers import s3_server

SHARDS_BY_URL = 10


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    sandbox.build(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    yield sandbox.copy(built, tmp_path / "here")
    shutil.rmtree(tmp_path / "here")


@pytest.fixture
def bucket(built, monkeypatch):
    """s3://bucket with shards, on a server of S3's."""
    with s3_server(monkeypatch) as client:
        client.create_bucket(Bucket="bucket")
        for number in range(SHARDS_BY_URL):
            client.upload_file(built / "a" / f"{number:02d}.tar", "bucket", f"{number:04d}.tar")
        yield


def page_names(language):
    return [
        page.name for page in pages.PAGES if any(b.language == language for b in pages.blocks(page))
    ]


def of(name, language):
    page = next(page for page in pages.PAGES if page.name == name)
    return [block for block in pages.blocks(page) if block.language == language]


@pytest.mark.slow
@pytest.mark.parametrize("name", page_names("sh"))
def test_the_commands_of_a_page_run(name, folder, bucket):
    for block in of(name, "sh"):
        sandbox.run(block.code, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", page_names("python"))
def test_the_python_of_a_page_runs(name, folder):
    for block in of(name, "python"):
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", block.code],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{name}, line {block.line}:\n{done.stderr[-3000:]}"


@pytest.mark.slow
def test_the_batch_script_trains_and_says_so_to_slurm(folder):
    (script,) = of("training.md", "bash")
    printed = sandbox.run(script.code, folder)
    assert "× 2 processes" in printed, printed[-3000:]
    assert (folder / "logs/vit-b-32/checkpoints").is_dir()
