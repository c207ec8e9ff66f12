"""Installing: what a compiler's absence changes, and that nothing heavy is imported for nothing."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build_wheel(folder, **environment):
    """The wheel's unpacked content, built from a copy of the sources."""
    source = folder / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for file in files:
        if (ROOT / file).is_file():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_bytes((ROOT / file).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "."]
    done = subprocess.run(
        [*command, "-w", str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("clipfast-*.whl"))) as wheel:
        wheel.extractall(folder / "unpacked")
    return folder / "unpacked"


# This environment's own editable install would lend what the wheel lacks.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"


def run_elsewhere(unpacked, folder, code):
    return subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(unpacked), "COLUMNS": "200"},
    )


def doctor(unpacked, folder):
    return run_elsewhere(unpacked, folder, "import clipfast.cli as c; sys.exit(c.main(['doctor']))")


def words_of_table(printed):
    """Its text without the rules, as if no cell had been broken over lines."""
    return " ".join(printed.replace("│", " ").split())


@pytest.mark.slow
def test_without_a_compiler_the_install_succeeds_and_doctor_says_what_it_costs(tmp_path):
    unpacked = build_wheel(tmp_path, CXX="/nonexistent/c++", CC="/nonexistent/cc")
    assert not list((unpacked / "clipfast_kernels").glob("_C*"))
    done = doctor(unpacked, tmp_path)
    assert done.returncode == 0, done.stderr
    printed = words_of_table(done.stdout)
    assert "no C++ compiler" in printed
    assert "the compiled extension clipfast_kernels._C is missing" in printed
    assert "1.3 to 2.5 times the time" in printed
    code = (
        "import torch; from clipfast_kernels import backends, contrastive_loss as f\n"
        "x = torch.ones(2, 2)\n"
        "print(backends('contrastive_loss', x, x).auto, f(x, x, 1.0).item())"
    )
    done = run_elsewhere(unpacked, tmp_path, code)
    assert done.stdout.split()[0] == "torch", done.stderr


@pytest.mark.slow
def test_a_wheel_with_a_compiler_carries_one_extension_for_every_python(tmp_path):
    unpacked = build_wheel(tmp_path)
    assert [p.name for p in (unpacked / "clipfast_kernels").glob("_C*")] == ["_C.abi3.so"]
    assert "-cp311-abi3-" in next(tmp_path.glob("*.whl")).name
    assert (unpacked / "clipfast" / "models" / "configs" / "ViT-B-32.json").is_file()
    assert (unpacked / "clipfast_bench" / "compare.py").is_file()
    done = doctor(unpacked, tmp_path)
    assert "clipfast_kernels._C is missing" not in words_of_table(done.stdout)


def test_the_kernel_library_imports_neither_the_trainer_nor_its_dependencies():
    code = "import sys, clipfast_kernels; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "clipfast_kernels" in loaded, done.stderr
    assert loaded.isdisjoint({"clipfast", "torchvision", "rich", "matplotlib", "sklearn"})
