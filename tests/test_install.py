"""What is imported, and when: nothing heavy for nothing. tests/release builds and installs."""

import subprocess
import sys

import pytest


def test_the_kernel_library_imports_neither_the_trainer_nor_its_dependencies():
    code = "import sys, clipfast_kernels; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "clipfast_kernels" in loaded, done.stderr
    assert loaded.isdisjoint({"clipfast", "torchvision", "rich", "matplotlib", "sklearn"})


@pytest.mark.parametrize("module", ["clipfast", "clipfast.cli", "clipfast.train"])
def test_the_command_comes_before_torch_so_that_it_can_set_how_threads_wait(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
