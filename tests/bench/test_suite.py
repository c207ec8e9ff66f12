"""`clipfast bench` from end to end, on small case files in the form of ours."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clipfast_bench.harness import suite
from clipfast_bench.harness.cases import FAMILIES

from clipfast.cli import main

BENCH = Path(suite.__file__).parents[1]

CASES = """
import torch
from clipfast_bench.harness.operation import Question, Way, hold_question, leaves


def scaled(by):
    return lambda: lambda x: by * torch.sin(x)


def ask(rows, seed, ours=1.0):
    torch.manual_seed(seed)
    x = torch.randn(rows, 64)
    ways = [
        Way("ours", scaled(ours)),
        Way("right", scaled(1.0)),
        Way("slightly off", scaled(1.001)),
        Way("elsewhere", scaled(1.0), lambda device: "elsewhere is not installed"),
    ]
    return Question(leaves(x=x), ways, torch.sin, torch.ones(rows, 64), flops=1e6, nbytes=1e6)
"""
RIGHT = (
    CASES
    + """

def test_sine(contest, place):
    hold_question(contest, "sine", ask, 256, rounds=5, axis="N", dtype=place.dtype_name)
"""
)
WRONG = (
    CASES
    + """

def test_wrong_sine(contest, place):
    ask_wrong = lambda rows, seed: ask(rows, seed, ours=1.01)
    hold_question(contest, "sine", ask_wrong, 256, rounds=5)
"""
)


def write(folder, text):
    file = folder / "bench_sine.py"
    file.write_text(text)
    return file


def run_pytest(*words, folder):
    """By its own command, and as no worker of the pytest that asks."""
    environment = {name: text for name, text in os.environ.items() if "PYTEST" not in name}
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def run(tmp_path, text, *words):
    """The exit code, and the results."""
    stored = tmp_path / "results.json"
    cases = ["--cases", str(write(tmp_path, text))]
    code = main(["bench", "run", *cases, "--json", str(stored), *words])
    return code, json.loads(stored.read_text()) if stored.exists() else None


def test_a_wrong_contender_is_printed_as_wrong_and_has_no_speed(tmp_path, capsys):
    code, record = run(tmp_path, RIGHT)
    assert code == 0
    (row,) = record["benchmarks"]
    info = row["extra_info"]
    assert set(info["peer_over_ours"]) == {"right"}
    assert info["answers"]["ours"]["right"]
    assert not info["answers"]["slightly off"]["right"]
    shown = capsys.readouterr().out
    assert "wrong: slightly off in sine: error" in shown
    assert "absent: elsewhere (sine): elsewhere is not installed" in shown


def test_nothing_is_timed_and_the_exit_code_is_1_where_ours_is_wrong(tmp_path, capsys):
    code, record = run(tmp_path, WRONG)
    assert code == 1
    assert record["benchmarks"] == []
    (left,) = record["not_timed"]
    assert left["reason"].startswith("wrong: ours error ")
    assert "allowed" in left["reason"]
    assert "wrong sine: wrong: ours error" in capsys.readouterr().out


def test_a_failing_case_is_told_and_the_exit_code_is_1(tmp_path, capsys):
    broken = RIGHT.replace("torch.manual_seed(seed)", "raise RuntimeError('out of luck')")
    code, record = run(tmp_path, broken)
    assert code == 1
    assert record["not_timed"][0]["reason"] == "failed: RuntimeError: out of luck"
    assert "out of luck" in capsys.readouterr().err


def test_results_have_the_form_that_others_read(tmp_path):
    _, record = run(tmp_path, RIGHT, "--budget", "20s")
    machine, (row,) = record["machine_info"], record["benchmarks"]
    assert record["budget_s"] == 20
    assert record["not_timed"] == record["verification"] == []
    assert {"versions", "threads", "cpu_capability", "gpu", "rates"} <= machine.keys()
    assert "node" not in machine
    assert machine["rates"].keys() == {"matmul_flops", "copy_bytes"}
    assert all(rate > 0 for rate in machine["rates"].values())
    assert record["commit_info"].keys() == {"id", "time", "dirty", "project"}
    assert record["commit_info"]["project"] == "clipfast"
    info = row["extra_info"]
    assert info["op"] == "sine"
    assert info["size"] == {"axis": "N", "value": 256}
    assert (info["device"], info["dtype"]) == ("cpu", "float32")
    assert (info["flops"], info["bytes"]) == (1e6, 1e6)
    assert len(row["stats"]["data"]) == len(info["peer_seconds"]["right"])
    low, high = info["spread"]["right"]
    assert low <= info["peer_over_ours"]["right"] <= high
    assert info["answers"]["ours"].keys() >= {"error", "allowed", "right"}
    assert info["absent"] == {"elsewhere": "elsewhere is not installed"}
    assert row["params"] == {"place": "cpu-float32"}


def test_a_page_is_written_where_a_folder_is_named(tmp_path):
    code, record = run(tmp_path, RIGHT, "--output", str(tmp_path / "out"))
    assert code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
    assert "slightly off" in (tmp_path / "out" / "report.html").read_text()


def test_a_contribution_of_a_cpu_is_one_valid_file(tmp_path, capsys):
    file = tmp_path / "mine.json"
    words = ["--cases", str(write(tmp_path, RIGHT)), "--output", str(file)]
    assert main(["bench", "contribute", *words]) == 0
    assert "missing: a GPU" in capsys.readouterr().out
    (tmp_path / "sent").mkdir()
    file.rename(tmp_path / "sent" / "mine.json")
    assert main(["bench", "contributed", str(tmp_path / "sent")]) == 0


def test_ctrl_c_keeps_what_was_measured(tmp_path, capfd):
    interrupted = RIGHT + (
        "\n\ndef test_the_next(contest):\n    import os, signal\n"
        f"    os.kill(os.getpid(), {int(signal.SIGINT)})\n"
    )
    code, record = run(tmp_path, interrupted)
    assert code == 130
    assert [row["name"] for row in record["benchmarks"]] == ["test_sine[cpu-float32]"]
    shown = capfd.readouterr()
    assert "sine" in shown.out
    assert "interrupted" in shown.err


def test_a_case_that_only_shows_while_it_runs_that_it_cannot_fit_is_ended(tmp_path):
    endless = RIGHT + (
        "\n\ndef test_endless(contest):\n    while True:\n        try:\n"
        "            sum(range(1000))\n        except Exception:\n            pass\n"
    )
    code, record = run(tmp_path, endless, "--budget", "4s")
    assert code == 0
    (left,) = record["not_timed"]
    assert left["name"] == "test_endless"
    assert left["reason"].startswith("it needs more than ")


@pytest.mark.slow
def test_pytest_runs_the_same_cases_by_the_same_plugin(tmp_path):
    file, stored = write(tmp_path, RIGHT), tmp_path / "results.json"
    words = ["-p", "clipfast_bench.harness.plugin", "-p", "no:cacheprovider", str(file)]
    words += ["--benchmark-only", f"--benchmark-json={stored}", "-o", "python_files=bench_*.py"]
    done = run_pytest(*words, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "wrong: slightly off in sine" in done.stdout
    record = json.loads(stored.read_text())
    assert record["budget_s"] is None
    (row,) = record["benchmarks"]
    assert len(row["stats"]["data"]) == 5  # all that the case asks for, without a budget


@pytest.mark.slow
def test_answers_alone_are_asked_for_where_timing_is_switched_off(tmp_path):
    file = write(tmp_path, WRONG)
    words = ["-p", "clipfast_bench.harness.plugin", "-p", "no:cacheprovider", str(file)]
    words += ["--benchmark-disable", "-o", "python_files=bench_*.py"]
    done = run_pytest(*words, folder=tmp_path)
    assert done.returncode == 1
    assert "wrong: ours error" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--budget", "soon"], "--budget: expected a time such as 30s"),
        (["--only", "ops,speed"], "--only: expected some of ops, feeding, training, evaluation"),
        (["--device", "tpu"], "--device: expected one of auto, cpu, cuda; got 'tpu'"),
        (["--json", "no/x.json"], "--json no/x.json: expected a folder that exists"),
        (["run", "-k", "no_such_case", "--only", "ops"], "expected the name of a case"),
        (["ops"], "expected one of run, compare, report, contribute, contributed, feed, train"),
    ],
)
def test_a_mistake_is_one_sentence(words, sentence, capsys):
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clipfast bench: ")
    assert sentence in line


def test_what_the_callers_pytest_was_told_is_not_for_the_suites(tmp_path, monkeypatch):
    told = {"PYTEST_ADDOPTS": "--no-such-option", "PYTEST_XDIST_WORKER": "gw0"}
    for name, text in told.items():
        monkeypatch.setenv(name, text)
    code, record = run(tmp_path, RIGHT)
    assert code == 0
    assert len(record["benchmarks"]) == 1
    assert {name: os.environ[name] for name in told} == told


def test_a_missing_pytest_benchmark_is_one_sentence_with_what_installs_it(monkeypatch, capsys):
    without = {"pytest_benchmark"}
    real = suite.find_spec
    monkeypatch.setattr(suite, "find_spec", lambda name: None if name in without else real(name))
    assert main(["bench"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert 'pytest_benchmark is not installed: pip install "clipfast[bench]"' in line


@pytest.mark.slow
def test_every_case_file_is_imported_and_has_a_first_case_for_its_ops():
    """Collected as `clipfast bench` does it, by its own options."""
    words = [*(str(BENCH / family) for family in FAMILIES), "-c", os.devnull, f"--rootdir={BENCH}"]
    words += ["-p", "clipfast_bench.harness.plugin", "-p", "no:cacheprovider"]
    words += ["-o", "python_files=bench_*.py", "--collect-only", "-q", "--budget", "30s"]
    done = subprocess.run([sys.executable, "-m", "pytest", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if "::" in line]
    files = {line.partition("::")[0] for line in lines}
    assert files == {
        str(path.relative_to(BENCH))
        for family in FAMILIES
        for path in BENCH.glob(f"{family}/bench_*.py")
    }
    first = [line.partition("::test_")[2].partition("[")[0] for line in lines[:20]]
    assert set(first) >= {
        *("attention_images", "attention_packed", "attention_one_query", "contrastive_loss"),
        *("sigmoid_loss", "gathered_similarity", "quick_gelu", "batch_norm", "tokenizer"),
        *("decode", "loader", "train_step", "zero_shot_classifier", "retrieval"),
    }


@pytest.mark.slow
def test_thirty_seconds_give_every_operation_a_row_from_another_folder(tmp_path):
    words = ["bench", "--budget", "30s", "--json", "results.json"]
    done = subprocess.run(
        [sys.executable, "-m", "clipfast", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "results.json").read_text())
    ops = {row["extra_info"]["op"] for row in record["benchmarks"]}
    assert ops >= {
        *("attention", "contrastive_loss", "sigmoid_loss", "gathered_similarity"),
        *("quick_gelu", "batch_norm"),
    }
    for row in record["benchmarks"]:
        assert row["extra_info"]["answers"]["ours"]["right"], row["name"]
    assert not [left for left in record["not_timed"] if left["reason"].startswith("wrong")]
