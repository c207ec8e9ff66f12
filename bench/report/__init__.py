"""Results of a run, drawn and written as one page."""

from clipfast_bench.report.writing import write_report

__all__ = ["write_report"]
