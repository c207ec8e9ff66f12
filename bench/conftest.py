"""What `pytest bench` needs beyond pytest-benchmark."""

pytest_plugins = ("clipfast_bench.harness.plugin",)
