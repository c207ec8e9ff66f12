"""Time and memory of the losses over N, ours and open_clip's, drawn from stored results.

``python -m clipfast_bench.plot_losses bench/results/*losses*.json --out docs/losses.png``
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of a benchmark: the loss, what is measured, N, and the features' width.
_NAME = re.compile(r"test_(contrastive|sigmoid)_loss(_memory|_at_)?\[?(\d+)(?:-(\d+)?)?")
_LABELS = {
    ("contrastive", "ours"): "contrastive_loss",
    ("contrastive", "theirs"): "open_clip ClipLoss",
    ("sigmoid", "ours"): "sigmoid_loss",
    ("sigmoid", "theirs"): "open_clip SigLipLoss",
}

Points = dict[tuple[str, str], dict[int, float]]


def read(paths: list[Path]) -> tuple[Points, Points]:
    """Seconds and MiB by (loss, whose) and N, at D = 512."""
    seconds: Points = defaultdict(dict)
    mebibytes: Points = defaultdict(dict)
    for path in paths:
        for result in json.loads(path.read_text())["benchmarks"]:
            found = _NAME.match(result["name"])
            if found is None or (found[2] is None and found[4] not in (None, "512")):
                continue
            loss, n, extra = found[1], int(found[3]), result["extra_info"]
            if found[2] == "_memory":
                for step, value in extra["figures"].items():
                    whose = "ours" if step == "ours MiB" else "theirs"
                    mebibytes[loss, whose][n] = value
                continue
            seconds[loss, "ours"][n] = result["stats"]["median"]
            for peer, samples in extra.get("peer_seconds", {}).items():
                if peer in _LABELS.values():
                    seconds[loss, "theirs"][n] = sorted(samples)[len(samples) // 2]
    return seconds, mebibytes


def draw(seconds: Points, mebibytes: Points, out: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    panels = (
        (axes[0], seconds, "seconds, forward + backward"),
        (axes[1], mebibytes, "MiB beyond inputs and gradients"),
    )
    for axis, points, label in panels:
        for key, name in _LABELS.items():
            sizes = sorted(points.get(key, {}))
            axis.plot(
                sizes,
                [points[key][n] for n in sizes],
                marker="o" if key[1] == "ours" else "s",
                linestyle="-" if key[1] == "ours" else "--",
                color="tab:blue" if key[0] == "contrastive" else "tab:orange",
                label=name,
            )
        axis.set(xscale="log", yscale="log", xlabel="N pairs, D = 512, float32", ylabel=label)
        ticks = [256, 1024, 4096, 8192, 32768] if axis is axes[0] else [1024, 4096, 8192, 32768]
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="clipfast_bench.plot_losses", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files that `make bench` left")
    parser.add_argument("--out", type=Path, default=Path("docs/losses.png"))
    arguments = parser.parse_args()
    draw(*read(arguments.results), arguments.out)
    print(f"drew {arguments.out}")


if __name__ == "__main__":
    main()
