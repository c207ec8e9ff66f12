"""Version, changelog and citation say the same."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from releasing import ROOT

import clipfast

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
RELEASE = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\S+))?$", re.MULTILINE)
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def test_the_installed_package_has_the_version_of_pyproject():
    assert clipfast.__version__ == metadata.version("clipfast") == PROJECT["version"]


def test_no_other_file_of_the_package_has_a_version_of_its_own():
    for path in [*(ROOT / "clipfast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        assert not re.search(r"""^__version__ = ["']""", path.read_text(), re.MULTILINE), path


def test_the_command_line_tells_the_version():
    done = subprocess.run(
        [sys.executable, "-m", "clipfast", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"clipfast {PROJECT['version']}\n", done.stderr
    assert done.returncode == 0


def test_the_changelog_begins_with_this_version_or_what_follows_it():
    released = [found["version"] for found in RELEASE.finditer(CHANGELOG)]
    assert released[0] == "Unreleased" or released[0] == PROJECT["version"]
    assert PROJECT["version"] in released or released == ["Unreleased"]


def test_the_changelog_has_the_form_of_keep_a_changelog():
    assert CHANGELOG.startswith("# Changelog\n")
    for line in re.findall(r"^## .*$", CHANGELOG, re.MULTILINE):
        found = RELEASE.fullmatch(line)
        assert found, line
        assert (found["version"] == "Unreleased") == (found["date"] is None), line
        assert found["date"] is None or re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"]), line
    kinds = re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)
    assert kinds
    assert set(kinds) <= set(KINDS)


def test_the_citation_is_of_this_version_and_licence():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == PROJECT["license"]
    assert [author["name"] for author in CITATION["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert "date-released" not in CITATION or str(CITATION["date-released"]) in CHANGELOG


@pytest.mark.parametrize("key", ["cff-version", "message", "title", "type"])
def test_the_citation_has_what_its_format_requires(key):
    assert CITATION[key]
    assert CITATION["cff-version"] == "1.2.0"


def test_the_wheel_of_python_and_torch_that_is_claimed_is_the_one_that_setup_builds_for():
    setup = (ROOT / "setup.py").read_text()
    assert PROJECT["requires-python"] == ">=3.11"
    assert '"py_limited_api": "cp311"' in setup
    assert "0x030B0000" in setup
    assert "TORCH_MINIMUM = (2, 10)" in setup
    assert "torch>=2.10" in PROJECT["dependencies"]
