"""Contributed results: the form, right kernels, and nobody's name in them."""

import copy
import json
import socket
from pathlib import Path

import pytest
from clipfast_bench.harness.contribution import (
    FORM,
    faults_of,
    missing_from,
    without_names,
)

from clipfast.cli import main

CONTRIBUTED = Path(__file__).parents[2] / "bench" / "results" / "contributed"
RIGHT = {"error": 1e-7, "allowed": 1e-6, "right": True}
ROW = {
    "name": "test_x[cpu-float32-N=8]",
    "group": "ops",
    "stats": {"data": [0.1, 0.2, 0.3]},
    "extra_info": {
        "answers": {"ours": RIGHT, "peer": RIGHT},
        "peer_seconds": {"peer": [0.2, 0.3, 0.4]},
        "absent": {"flash-attn": "flash-attn is not installed"},
    },
}
VERIFIED = {"op": "attention", "backend": "triton", "dtype": "float16", "status": "right"}


@pytest.fixture
def record():
    """Of a GPU."""
    return copy.deepcopy(
        {
            "machine_info": {"gpu": "NVIDIA A100", "cpu": {"brand_raw": "AMD EPYC"}},
            "commit_info": {"id": "0" * 40, "dirty": False},
            "benchmarks": [ROW],
            "not_timed": [],
            "verification": [VERIFIED],
            "contribution": {"form": FORM},
        }
    )


def test_a_right_file_has_no_fault(record):
    assert list(faults_of(record)) == []


def test_a_cpus_file_needs_no_verification(record):
    record["machine_info"]["gpu"] = None
    record["verification"] = []
    assert list(faults_of(record)) == []
    assert "a GPU: these are results of a CPU" in list(missing_from(record))


@pytest.mark.parametrize(
    "path", ["/home/ada/clipfast", "/Users/ada/x.py", "/root/work", "C:\\Users\\ada\\x"]
)
def test_a_leaked_home_is_found_and_taken_out(record, path):
    record["not_timed"] = [{"name": "x", "op": "x", "reason": f"failed: no file {path}"}]
    (fault,) = faults_of(record)
    assert fault.startswith("expected no path of somebody's home")
    clean = without_names(record)
    assert list(faults_of(clean)) == []
    assert "ada" not in json.dumps(clean)


def test_a_leaked_host_is_found_and_taken_out(record, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box-17.example")
    record["benchmarks"][0]["extra_info"]["absent"]["x"] = "no answer from gpu-box-17"
    (fault,) = faults_of(record)
    assert "'gpu-box-17'" in fault
    assert list(faults_of(without_names(record))) == []
    record = without_names(record)
    record["machine_info"]["node"] = "somewhere"
    assert any("`node`" in fault for fault in faults_of(record))


def test_a_speed_of_a_wrong_answer_is_a_fault(record):
    record["benchmarks"][0]["extra_info"]["answers"]["peer"] = {"right": False}
    (fault,) = faults_of(record)
    assert "peer has a speed" in fault


@pytest.mark.parametrize("seconds", [[], [0.0, 0.1], [-1.0], ["1"], [float("inf")]])
def test_seconds_are_above_zero(record, seconds):
    record["benchmarks"][0]["stats"]["data"] = seconds
    assert any("expected seconds above 0" in fault for fault in faults_of(record))


def test_a_gpus_file_has_the_table_of_verify_with_right_kernels_alone(record):
    record["verification"] = []
    (fault,) = faults_of(record)
    assert "expected the table of verify()" in fault
    record["verification"] = [VERIFIED | {"status": "wrong", "note": "d_q"}]
    (fault,) = faults_of(record)
    assert fault == "verification: attention by triton in float16 is wrong: d_q"


def test_another_form_is_named(record):
    del record["verification"]
    (fault,) = faults_of(record)
    assert fault == "expected verification at the top level; got another form"


def test_the_command_checks_every_file_of_a_folder(record, tmp_path, capsys):
    assert main(["bench", "contributed", str(tmp_path)]) == 0
    (tmp_path / "a100.json").write_text(json.dumps(record))
    assert main(["bench", "contributed", str(tmp_path)]) == 0
    (tmp_path / "nan.json").write_text('{"benchmarks": NaN}')
    assert main(["bench", "contributed", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "a100.json: right" in shown.out
    assert "nan.json: 1 faults" in shown.out
    assert "expected JSON" in shown.err
    assert main(["bench", "contributed", str(tmp_path / "none")]) == 2


def test_what_is_in_the_repository_is_right():
    assert (CONTRIBUTED / "README.md").is_file()
    assert main(["bench", "contributed", str(CONTRIBUTED)]) == 0


def test_a_contribution_names_its_file(capsys):
    assert main(["bench", "contribute"]) == 2
    assert "--output: expected the file to write; got none" in capsys.readouterr().err
