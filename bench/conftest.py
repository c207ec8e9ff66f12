"""What every stored result says of its machine, and the table after a run."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from clipfast_bench import gpu_rows

_PACKAGES = ("clipfast", "torch", "torchvision", "triton", "open_clip_torch", "numpy")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    installed = {d.name for d in metadata.distributions()}
    machine_info["versions"] = {p: metadata.version(p) for p in _PACKAGES if p in installed}
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info.pop("node", None)  # a result says what machine, not whose
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    session = getattr(terminalreporter.config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    terminalreporter.section("clipfast beside its peers, medians of paired runs")
    for result in session.benchmarks:
        ratios = result.extra_info.get("peer_over_ours", {})
        figures = [f"{name} takes {ratio:.2f}× ours" for name, ratio in ratios.items()]
        figures += [f"{k} {v:.4g}" for k, v in result.extra_info.get("figures", {}).items()]
        terminalreporter.write_line(
            f"{result.name}: {1000 * result.stats.median:.1f} ms; " + "; ".join(figures)
        )
    terminalreporter.section("what needs a GPU")
    for row in gpu_rows.rows():
        terminalreporter.write_line(row)
