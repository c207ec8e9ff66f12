"""A release is built once for these tests, as `make release` builds it; `--release DIR` tests the
files of that folder instead."""

import shutil
import sys
from pathlib import Path

import pytest
from releasing import ROOT, Release, Venv, only, run, tree_files


def pytest_addoption(parser):
    parser.addoption("--release", metavar="DIR", help="of an sdist and a wheel to be tested")


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A copy of the source tree, with what building leaves there."""
    folder = tmp_path_factory.mktemp("tree")
    for name in tree_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def release(request, tmp_path_factory) -> Release:
    given = request.config.getoption("release", default=None)
    folder = Path(given).resolve() if given else tmp_path_factory.mktemp("dist")
    if not given:
        tree = request.getfixturevalue("tree")
        run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder], cwd=tree)
    return Release(only(folder.glob("clipfast-*.tar.gz")), only(folder.glob("clipfast-*.whl")))


@pytest.fixture(scope="session")
def wheel_without_compiler(tree, tmp_path_factory) -> Path:
    """Of the source tree itself."""
    folder = tmp_path_factory.mktemp("no-compiler")
    source = shutil.copytree(tree, folder / "source", ignore=shutil.ignore_patterns("build"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "."]
    missing = {"CXX": "/nonexistent/c++", "CC": "/nonexistent/cc"}
    run([*command, "-w", folder], cwd=source, **missing)
    return only(folder.glob("clipfast-*.whl"))


@pytest.fixture(scope="session")
def venv(release, tmp_path_factory) -> Venv:
    folder = tmp_path_factory.mktemp("venv")
    run([sys.executable, "-m", "venv", folder])
    here = Venv(folder / "bin", tmp_path_factory.mktemp("home"))
    here("python", "-m", "pip", "install", "--no-index", "--no-deps", release.wheel)
    here("python", "-m", "pip", "uninstall", "--yes", "setuptools")  # Python 3.11 brings 65
    # Dependencies are gigabytes: they are lent, from after the venv's own packages. This
    # environment's own, editable clipfast is not among them: a .pth is read where a site begins.
    site = only(folder.glob("lib/python*/site-packages"))
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    return here
