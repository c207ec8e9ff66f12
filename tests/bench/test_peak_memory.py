"""Peaks of memory, of processes of their own."""

import subprocess
import sys

import pytest
from clipfast_bench.harness.budget import parse_budget
from clipfast_bench.harness.memory import peak_mib


def peak_of_loss(n, name):
    where = "clipfast_bench.ops.bench_contrastive_loss:alone"
    command = [sys.executable, "-m", "clipfast_bench.harness.memory", where, str(n), repr(name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.slow
def test_a_dense_loss_holds_its_arrays_and_ours_does_not():
    pytest.importorskip("open_clip")
    n = 2048
    dense = n * n * 4 / 2**20
    ours, theirs = (peak_of_loss(n, name) for name in ("ours", "open_clip"))
    assert theirs > 2 * dense > ours > 0


@pytest.mark.slow
def test_a_process_that_fails_is_told_with_its_last_words():
    with pytest.raises(RuntimeError, match="parse_budget 'soon': .*expected a time"):
        peak_mib(parse_budget, "soon")
