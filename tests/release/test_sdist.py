"""The sdist has all that building, testing and reading take, and gives the tree's own wheel."""

import sys
import tarfile
import zipfile

import pytest
from releasing import run, tree_files

pytestmark = pytest.mark.slow


def members(sdist):
    with tarfile.open(sdist) as tar:
        return {m.name.partition("/")[2] for m in tar if m.isfile()}


def test_the_sdist_has_every_file_of_the_source_tree(release):
    absent = set(tree_files()) - members(release.sdist)
    assert not absent


def test_the_sdist_has_nothing_that_was_compiled(release):
    unwanted = (".so", ".o", ".pyc", "_build.json")
    assert not [name for name in members(release.sdist) if name.endswith(unwanted)]


def test_the_wheel_of_the_sdist_has_what_the_trees_own_has(release, wheel_without_compiler):
    """The tree's is built without a compiler, which is faster and of no matter here."""
    own, of_sdist = contents(wheel_without_compiler), contents(release.wheel)
    compiled = {"clipfast_kernels/_C.abi3.so"}
    assert of_sdist.keys() - compiled == own.keys()
    differing = {name for name in own if own[name] != of_sdist[name]}
    assert {name.partition("/")[2] for name in differing} == {"_build.json", "RECORD"}


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_twine_finds_nothing_to_say(release):
    said = run([sys.executable, "-m", "twine", "check", "--strict", *release])
    assert said.count("PASSED") == 2
