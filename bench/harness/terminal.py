"""The terminal of `clipfast bench run`: a bar over the cases in place of pytest's lines."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import Any

import pytest
from _pytest.terminal import TerminalReporter
from clipfast_bench.harness.plugin import SUITE
from clipfast_bench.harness.table import case_name
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Terminal:
    """A plugin in place of pytest's terminal: a bar over the cases, and which of them runs.

    It draws between rounds alone: a thread that draws would take time from what is timed.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.suite: Any = None
        self._said = io.StringIO()
        self._case = ""

    def __enter__(self) -> Terminal:
        self._stderr = os.fdopen(os.dup(2), "w")  # pytest takes the other one
        width = shutil.get_terminal_size((110, 40)).columns
        console = Console(
            file=self._stderr, width=width, force_terminal=sys.stderr.isatty() or None
        )
        self._bar = Progress(
            BarColumn(20),
            TaskProgressColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("collecting the cases", total=None)
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        self._stderr.close()

    def last_words(self) -> str:
        lines = [line for line in self._said.getvalue().splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"

    def failures(self) -> str:
        """pytest's own words on what failed."""
        said = self._said.getvalue()
        start, end = said.find("= FAILURES ="), said.find("short test summary info")
        if start < 0:
            start = said.find("= ERRORS =")
        if start < 0:
            return self.last_words()
        return said[said.rfind("\n", 0, start) + 1 : said.rfind("\n", 0, end) + 1].rstrip()

    @pytest.hookimpl(trylast=True)  # pytest's own is there by then
    def pytest_configure(self, config: pytest.Config) -> None:
        manager = config.pluginmanager
        reporter = manager.getplugin("terminalreporter")
        if reporter is not None:
            manager.unregister(reporter)
            manager.register(TerminalReporter(config, self._said), "terminalreporter")

    def pytest_collection_finish(self, session: Any) -> None:
        self.suite = session.config.stash[SUITE]
        self.suite.budget.began = self.began
        self.suite.on_round = self._show
        self._bar.update(self._task, total=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self._case = case_name(nodeid.rpartition("::")[2])
        self._show("")

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self._bar.advance(self._task)
        self._bar.refresh()

    def _show(self, what: str) -> None:
        words = f"{self._case}: {what}" if what else self._case
        self._bar.update(self._task, description=words)
        self._bar.refresh()
