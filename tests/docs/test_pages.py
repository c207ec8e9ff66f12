"""What the documentation says exists: pages, links, languages of its code, flags."""

import contextlib
import io
import re

import pytest
import site_pages as pages

from clipfast.cli import main

LANGUAGES = {"sh", "bash", "python", "text", "json"}  # the first three are run
COMMANDS = ("train", "eval", "demo", "plan", "doctor", "convert", "shards", "report", "bench")
SUBCOMMANDS = {
    "shards": ("make", "check", "resize", "stats", "deal"),
    "bench": ("run", "feed", "train", "compare", "report", "contribute"),
}
_TORCHRUN = """--standalone --nproc-per-node --nproc_per_node --nnodes --rdzv-backend
    --rdzv-endpoint --rdzv-id --max-restarts --hostfile --module"""
_SLURM = """--job-name --nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal
    --requeue --open-mode --kill-on-bad-exit --gpus-per-task"""
_PIP_AND_PYTEST = "--no-build-isolation --benchmark-only"
FOREIGN = set(f"{_TORCHRUN} {_SLURM} {_PIP_AND_PYTEST}".split())


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_no_block_escapes_the_tests_by_its_language(page):
    for block in pages.blocks(page):
        assert block.language in LANGUAGES, f"{page.name}, line {block.line}: {block.language!r}"


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_link_leads_to_a_page_and_a_picture_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://", "#")):
            path = page.parent / target.partition("#")[0]
            assert path.exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    text = (pages.ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"(\S+\.md)$", text, re.MULTILINE))
    assert named == {page.name for page in pages.PAGES[1:]}


@pytest.fixture(scope="module")
def known_flags():
    """Of all commands' help."""
    lines = [[c] for c in COMMANDS]
    lines += [[c, sub] for c, subs in SUBCOMMANDS.items() for sub in subs]
    found = set()
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            assert main([*line, "--help"]) == 0
        found |= set(re.findall(r"--[a-z][\w-]+", printed.getvalue()))
    return found


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_a_flag_that_a_page_names_exists(page, known_flags):
    text = re.sub(r"[\w/.]*--[a-z]+\.\w+", "", page.read_text())
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
    assert named <= known_flags | FOREIGN, sorted(named - known_flags - FOREIGN)


def test_readme_and_the_guide_replace_the_same_commands():
    def replaced(page):
        text = (pages.ROOT / page).read_text()
        return text.split("| this | by that |")[1].split("\n\n")[0]

    assert replaced("README.md") == replaced("docs/migrate.md")
