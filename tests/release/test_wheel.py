"""The wheel holds every package and its data, under a tag that is true, and runs where there is no
compiler."""

import json
import re
import sys
import zipfile
from email.parser import HeaderParser

import pytest
from releasing import run, tree_files

pytestmark = pytest.mark.slow

# Where the tree's folders are in the wheel.
ROOTS = {"clipfast": "clipfast", "kernels/clipfast_kernels": "clipfast_kernels",
         "bench": "clipfast_bench"}  # fmt: skip
NOT_INSTALLED = ("bench/results/",)


@pytest.fixture(scope="module")
def wheel(release):
    with zipfile.ZipFile(release.wheel) as archive:
        yield archive


def test_the_wheel_has_every_file_of_the_packages_what_builds_the_extension_and_no_other(wheel):
    expected = {
        name.replace(root, package, 1)
        for name in tree_files()
        for root, package in ROOTS.items()
        if name.startswith(f"{root}/") and not name.startswith(NOT_INSTALLED)
    }
    assert len(expected) > 200
    sources = {name for name in tree_files() if name.startswith("csrc/")} | {"setup.py"}
    assert "csrc/cuda/attention.cu" in sources
    expected |= {f"clipfast_kernels/_source/{name}" for name in sources}
    expected |= {"clipfast_kernels/_C.abi3.so", "clipfast_kernels/_build.json"}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_tag_says_stable_abi_of_this_machine_and_the_wheel_has_one_extension(release, wheel):
    assert re.search(r"-cp311-abi3-linux_\w+\.whl$", release.wheel.name)
    extensions = [name for name in wheel.namelist() if name.endswith(".so")]
    assert extensions == ["clipfast_kernels/_C.abi3.so"]
    about = wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/WHEEL")))
    assert HeaderParser().parsestr(about.decode())["Root-Is-Purelib"] == "false"


def test_the_extension_calls_nothing_that_pythons_stable_abi_of_the_tag_lacks(release):
    pytest.importorskip("abi3audit", reason="not in dev: pip then tries versions for minutes")
    said = run([sys.executable, "-m", "abi3audit", "--strict", "--report", release.wheel])
    (found,) = json.loads(said)["specs"].values()
    (extension,) = found["wheel"]
    assert extension["name"] == "_C.abi3.so"
    assert extension["result"]["is_abi3"]
    assert extension["result"]["baseline"] == "3.11"
    assert extension["result"]["is_abi3_baseline_compatible"]


def test_the_extension_needs_no_library_but_the_systems_and_torchs(wheel, tmp_path):
    """So the tag is not manylinux's, which promises that there is no other than the system's."""
    path = wheel.extract("clipfast_kernels/_C.abi3.so", tmp_path)
    needed = re.findall(r"NEEDED.*\[(.+)\]", run(["readelf", "-dW", path]))
    system = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.\d+|ld-linux-.*")
    assert [name for name in needed if not system.fullmatch(name)] == ["libtorch_cpu.so"]


def test_a_bare_python_shows_the_commands_and_the_version(venv, release):
    assert "commands:" in venv("clipfast", "--help")
    version = venv("clipfast", "--version").split()
    assert version == ["clipfast", release.wheel.name.split("-")[1]]


def test_a_bare_python_has_no_compiler_and_the_wheels_extension_serves(venv):
    code = (
        "import shutil, torch, clipfast_kernels as k\n"
        "assert not any(map(shutil.which, ('cc', 'gcc', 'c++', 'g++', 'clang', 'nvcc')))\n"
        f"assert k.__file__.startswith({str(venv.bin.parent)!r}), k.__file__\n"
        "x, y = torch.randn(2, 64, 32)\n"
        "loss = k.contrastive_loss(x.requires_grad_(), y, 10.0, backend='cpu')\n"
        "loss.backward()\n"
        "wanted = k.contrastive_loss(x, y, 10.0, backend='reference')\n"
        "torch.testing.assert_close(loss, wanted)\n"
        "print(k.backends('contrastive_loss', x, y).auto, x.grad.norm().item() > 0)"
    )
    assert venv("python", "-c", code).split() == ["cpu", "True"]


def test_doctor_of_a_bare_python_finds_the_extension(venv):
    said = " ".join(venv("clipfast", "doctor").replace("│", " ").split())
    assert "clipfast_kernels._C is missing" not in said
    assert re.search(r"contrastive_loss cpu usable ← auto", said), said


def test_what_the_wheel_wants_of_other_packages_is_what_it_was_tested_with(venv, release):
    said = venv("python", "-m", "pip", "install", "--no-index", "--dry-run", release.wheel)
    assert "Requirement already satisfied: torch>=2.10" in said


def test_the_demo_trains_an_epoch_on_a_bare_python(venv):
    venv("clipfast", "demo", "--epochs", "1", "--pairs", "512", "--output", "small")
    assert (venv.home / "small" / "metrics.json").is_file()
    assert (venv.home / "small" / "contact_sheet.png").is_file()


def test_a_rebuild_without_setuptools_says_which_it_needs(venv, tmp_path):
    (tmp_path / "setuptools-65.5.0.dist-info").mkdir()
    (tmp_path / "setuptools-65.5.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: setuptools\nVersion: 65.5.0\n"
    )
    said = venv("python", "-m", "clipfast_kernels.rebuild", returns=2, PYTHONPATH=str(tmp_path))
    assert "rebuild: expected setuptools 77 or newer; got 65.5.0" in said


def test_the_extension_can_be_made_anew_from_the_wheels_own_sources(venv):
    compiler = f"{venv.bin}:/usr/bin:/bin"
    said = venv("python", "-m", "clipfast_kernels.rebuild", PATH=compiler)
    assert "extension: it was built" in said
    code = "import clipfast_kernels.extension as e; print(e.MISSING)"
    assert venv("python", "-c", code).strip() == "None"


def test_where_nothing_compiles_the_extension_stays_as_it_was(venv):
    said = venv("python", "-m", "clipfast_kernels.rebuild", returns=1)
    assert "no C++ compiler" in said
    code = "import clipfast_kernels.extension as e; print(e.MISSING)"
    assert venv("python", "-c", code).strip() == "None"
