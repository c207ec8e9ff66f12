"""The run's files somewhere else: a first copy before training, then what changes."""

import contextlib
import sys
from pathlib import Path

import fsspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "data" / "sources"))
from servers import s3_server
from small_runs import SmallRun, names_in

from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train.checkpoints.finding import furthest_whole
from clipfast.train.checkpoints.remote_sync import RemoteSync


@pytest.fixture(params=["file", "memory", "s3"])
def url(request, tmp_path):
    """A place to copy to: a disk, a store without folders, and S3 itself."""
    with contextlib.ExitStack() as stack:
        if request.param == "s3":
            pytest.importorskip("s3fs")
            pytest.importorskip("moto")
            monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
            stack.enter_context(s3_server(monkeypatch)).create_bucket(Bucket="runs")
            yield "s3://runs/all"
        elif request.param == "memory":
            fsspec.filesystem("memory").store.clear()
            yield "memory://all"
        else:
            yield f"file://{tmp_path}/there"


def copied(url):
    """Names below the run's folder there."""
    files, root = fsspec.url_to_fs(f"{url}/run")
    files.invalidate_cache()
    return sorted(path[len(root) + 1 :] for path in files.find(root))


def run_of(tmp_path, url, name="here", **changed):
    run = SmallRun(tmp_path / name, remote_sync=url, **changed)
    run.folder.checkpoints.mkdir(parents=True, exist_ok=True)
    run.folder.log.write_text("a line\n")
    return run


def test_a_runs_files_are_there_at_its_end_but_for_what_changes_meanwhile(tmp_path, url):
    run = run_of(tmp_path, url, save_most_recent=True)
    with run.checkpoints:
        assert copied(url) == ["out.log"]
        for _ in range(3):
            run.save()
        run.save_epoch()
        run.checkpoints.writer.finish()
        (run.folder.checkpoints / "epoch_2.pt.partial").write_bytes(b"half")
        run.folder.log.write_text("two\nlines\n")
    assert copied(url) == [
        "checkpoints/epoch_1.pt",
        "out.log",
        "state/epoch_1/manifest.json",
        "state/epoch_1/run.pt",
        *(f"state/step_{n}/{f}" for n in (2, 3) for f in ("manifest.json", "part_0.pt", "run.pt")),
    ]
    assert fsspec.open(f"{url}/run/out.log", "r").open().read() == "two\nlines\n"


def test_another_machine_goes_on_from_what_was_copied(tmp_path, url):
    run = run_of(tmp_path, url)
    with run.checkpoints:
        run.save_epoch()
        run.save()
    other = run_of(tmp_path, url, "other machine")
    sync = RemoteSync.of(other.args, other.folder)
    sync.fetch()
    assert other.states() == ["epoch_1", "step_11"]
    assert names_in(other.folder.checkpoints) == ["epoch_1.pt"]
    assert furthest_whole(other.folder, World()).path.name == "step_11"


def test_only_what_changed_is_copied_again(tmp_path):
    run = run_of(tmp_path, f"file://{tmp_path}/there")
    (run.folder.path / "params.txt").write_text("batch_size: 16\n")
    RemoteSync.of(run.args, run.folder).start()
    there = tmp_path / "there" / "run"
    before = {path.name: path.stat().st_mtime_ns for path in there.iterdir()}
    (run.folder.path / "params.txt").write_text("batch_size: 32\n")
    again = RemoteSync.of(run.args, run.folder)  # of a later start
    again.start()
    again.finish()
    after = {path.name: path.stat().st_mtime_ns for path in there.iterdir()}
    assert before["out.log"] == after["out.log"]
    assert (there / "params.txt").read_text() == "batch_size: 32\n"


def test_old_states_make_room_there_too(tmp_path):
    url = f"file://{tmp_path}/there"
    run = run_of(tmp_path, url)
    with run.checkpoints:
        for _ in range(3):
            run.save()
            run.checkpoints.writer.finish()
            run.checkpoints._remote.copy()
    assert names_in(tmp_path / "there" / "run" / "state") == ["step_2", "step_3"]


def test_the_copies_go_on_while_the_run_does(tmp_path):
    run = run_of(tmp_path, "memory://on", remote_sync_frequency=0.01)
    fsspec.filesystem("memory").store.clear()
    with run.checkpoints:
        run.save()
        run.checkpoints.writer.finish()
        for _ in range(12_000):
            if "state/step_1/manifest.json" in copied("memory://on"):
                break
            run.checkpoints._remote._ending.wait(0.01)
        assert "state/step_1/part_0.pt" in copied("memory://on")


def test_a_first_copy_that_fails_is_one_sentence_before_training(tmp_path):
    (tmp_path / "file").write_text("no folder")
    run = run_of(tmp_path, f"file://{tmp_path}/file")
    with pytest.raises(UserError, match="--remote-sync .*: expected to copy the run's files there"):
        run.checkpoints.__enter__()


def test_a_kind_of_url_that_is_not_known_is_named(tmp_path):
    with pytest.raises(UserError, match="expected a kind of URL that fsspec knows; got nowhere://"):
        run_of(tmp_path, "nowhere://x")


def test_a_last_copy_that_fails_is_no_success(tmp_path):
    run = run_of(tmp_path, f"file://{tmp_path}/there")
    run.checkpoints.__enter__()
    there = tmp_path / "there" / "run"
    (there / "out.log").unlink()
    there.rmdir()
    there.write_text("no folder any more")
    run.folder.log.write_text("two\nlines\n")
    with pytest.raises(UserError, match="expected to copy the run's files there"):
        run.checkpoints.finish()


def test_a_bucket_that_is_missing_is_not_made(tmp_path):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(monkeypatch) as client:
        run = run_of(tmp_path, "s3://absent/runs")
        with pytest.raises(UserError, match="--remote-sync s3://absent/runs: expected to copy"):
            run.checkpoints.__enter__()
        assert "absent" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
