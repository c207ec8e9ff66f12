"""Built without a compiler, the release installs all the same, and says what that costs."""

import os
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow

# This environment's own editable install would lend what the wheel lacks.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"


@pytest.fixture(scope="module")
def unpacked(wheel_without_compiler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel_without_compiler) as wheel:
        wheel.extractall(folder)
    return folder


def run_elsewhere(unpacked, folder, code):
    return subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(unpacked), "COLUMNS": "200"},
    )


def words_of_table(printed):
    """Its text without the rules, as if no cell had been broken over lines."""
    return " ".join(printed.replace("│", " ").split())


def test_doctor_says_what_the_missing_extension_costs(unpacked, tmp_path):
    assert not list((unpacked / "clipfast_kernels").glob("_C*"))
    code = "import clipfast.cli as c; sys.exit(c.main(['doctor']))"
    done = run_elsewhere(unpacked, tmp_path, code)
    assert done.returncode == 0, done.stderr
    printed = words_of_table(done.stdout)
    assert "no C++ compiler" in printed
    assert "the compiled extension clipfast_kernels._C is missing" in printed
    assert "1.3 to 2.5 times the time" in printed


def test_plain_torch_serves_in_the_extensions_place(unpacked, tmp_path):
    code = (
        "import torch; from clipfast_kernels import backends, contrastive_loss as f\n"
        "x = torch.ones(2, 2)\n"
        "print(backends('contrastive_loss', x, x).auto, f(x, x, 1.0).item())"
    )
    done = run_elsewhere(unpacked, tmp_path, code)
    assert done.stdout.split()[0] == "torch", done.stderr
