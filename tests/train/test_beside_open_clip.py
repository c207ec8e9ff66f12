"""Both trainers under the same command line: the files that they write, and what they learn.

open_clip_train 3.3.0 is shown our loader's batches, as its own order cannot be repeated; everything
else is its own.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from clipfast.cli import main
from clipfast.models.factory import create_model

open_clip = pytest.importorskip("open_clip")
params = pytest.importorskip("open_clip_train.params")

from clipfast_bench.training.train_open_clip import train_open_clip  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {
    "beside-vit": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "beside-rn": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
}


class Side(NamedTuple):
    """The folder of one trainer's run, and what is in it."""

    folder: Path

    @property
    def files(self):
        """Names, but for what TensorBoard adds to its own."""
        found = (str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        return {re.sub(r"tfevents.*", "tfevents", name) for name in found}

    @property
    def params(self):
        return dict(
            line.split(": ", 1)
            for line in (self.folder / "params.txt").read_text().splitlines()
            if ": " in line
        )

    @property
    def log_lines(self):
        """Of training, without what the clock and rounding change."""
        lines = re.findall("Train Epoch: .*", (self.folder / "out.log").read_text())
        lines = [re.sub(r"Data .* LR:", "LR:", line) for line in lines]
        return [re.sub(r"(Scale|loss|Loss): .*? ?(?=[A-Z]|$)", r"\1 ", line) for line in lines]

    def scalars(self, tag):
        events = EventAccumulator(str(self.folder / "tensorboard"))
        events.Reload()
        return {event.step: event.value for event in events.Scalars(tag)}

    @property
    def tags(self):
        events = EventAccumulator(str(self.folder / "tensorboard"))
        events.Reload()
        return {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"]}

    def checkpoint(self, epoch):
        return torch.load(self.folder / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)


class Pair(NamedTuple):
    ours: Side
    theirs: Side


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Configurations that both find by name, and weights that both start from."""
    folder = tmp_path_factory.mktemp("beside")
    for name, vision in VISION.items():
        content = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(content))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(0)
        torch.save(create_model(name).state_dict(), folder / f"{name}.pt")
    return folder


@pytest.fixture(scope="module")
def run(digit_shards, models, tmp_path_factory):
    """Runs both trainers; only --logs differs."""

    def run(model, *flags, ours=(), theirs=()):
        flags = [
            *("--train-data", digit_shards.train_pattern, "--train-num-samples", "96"),
            *("--model", model, "--pretrained", str(models / f"{model}.pt")),
            *("--batch-size", "16", "--epochs", "6", "--workers", "1", "--save-frequency", "2"),
            *("--lr", "1e-3", "--warmup", "5", "--precision", "fp32", "--device", "cpu"),
            *("--report-to", "tensorboard", "--log-every-n-steps", "1", "--name", "run"),
            *flags,
        ]
        logs = tmp_path_factory.mktemp("logs")
        assert main(["train", *flags, *ours, "--logs", str(logs / "ours")]) == 0
        train_open_clip([*flags, *theirs, "--logs", str(logs / "theirs")], our_batches=True)
        return Pair(Side(logs / "ours" / "run"), Side(logs / "theirs" / "run"))

    return run


@pytest.fixture(scope="module")
def vit(run):
    return run("beside-vit")


def assert_same_course(pair, tags=("loss", "contrastive_loss", "lr", "scale"), steps=36):
    for tag in tags:
        ours, theirs = (side.scalars(f"train/{tag}") for side in pair)
        assert len(theirs) == steps
        assert ours == pytest.approx(theirs, rel=1e-4), tag


def test_losses_scales_and_learning_rates_are_open_clips_step_by_step(vit):
    assert_same_course(vit)


def test_the_files_are_open_clips(vit):
    assert vit.theirs.files <= vit.ours.files
    ours, theirs = ({n for n in s.files if n.startswith("checkpoints")} for s in vit)
    assert ours == theirs


def test_the_parameters_written_are_open_clips(vit, models):
    ours, theirs = vit.ours.params, vit.theirs.params
    names = vars(params.parse_args(["--model", "beside-vit"])).keys()
    assert {n: ours.get(n) for n in names - {"logs"}} == {n: theirs[n] for n in names - {"logs"}}


def test_the_log_lines_are_open_clips(vit):
    assert vit.ours.log_lines == vit.theirs.log_lines
    assert len(vit.ours.log_lines) == 36


def test_tensorboard_has_open_clips_scalars_at_the_same_steps(vit):
    assert vit.theirs.tags.items() <= vit.ours.tags.items()


def test_a_checkpoint_has_open_clips_keys_shapes_and_optimizer_groups(vit):
    for epoch in (2, 6):
        ours, theirs = (side.checkpoint(epoch) for side in vit)
        assert ours.keys() == theirs.keys()
        assert (ours["epoch"], ours["name"]) == (theirs["epoch"], theirs["name"])
        assert described(ours["state_dict"]) == described(theirs["state_dict"])
        assert list(ours["state_dict"]) == list(theirs["state_dict"])
        states = ours["optimizer"]["state"], theirs["optimizer"]["state"]
        assert described(states[0]) == described(states[1])
        groups = ours["optimizer"]["param_groups"], theirs["optimizer"]["param_groups"]
        for own, expected in zip(*groups, strict=True):
            for name in ("params", "weight_decay", "betas", "eps"):
                assert own[name] == expected[name], name
            assert own["lr"] == pytest.approx(expected["lr"])


def described(state):
    """Shapes and types under the same names."""
    if isinstance(state, torch.Tensor):
        return state.shape, state.dtype
    return {name: described(value) for name, value in state.items()}


def test_each_resumes_the_others_checkpoint_and_goes_on_with_equal_losses(run, vit):
    crossed = run(
        "beside-vit",
        ours=["--resume", str(vit.theirs.folder / "checkpoints" / "epoch_4.pt")],
        theirs=["--resume", str(vit.ours.folder / "checkpoints" / "epoch_4.pt")],
    )
    assert_same_course(crossed, steps=12)
    uninterrupted = vit.theirs.scalars("train/loss")
    for step, loss in crossed.ours.scalars("train/loss").items():
        assert loss == pytest.approx(uninterrupted[step], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        # With a ResNet's own ε of 1e-8, AdamW makes whole steps of gradients that are rounding
        # errors: open_clip's losses then leave its own if its weights are changed by 1e-7.
        ("beside-rn", ["--eps", "1e-6", "--lr", "1e-4"]),
        ("beside-vit", ["--accum-freq", "2", "--batch-size", "8"]),
        ("beside-vit", ["--grad-clip-norm", "0.3"]),
        ("beside-vit", ["--lr-scheduler", "const"]),
        ("beside-vit", ["--lr-scheduler", "const-cooldown", "--epochs-cooldown", "3"]),
        ("beside-vit", ["--skip-scheduler"]),
        ("beside-vit", ["--siglip"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value[:2]),
)
def test_other_flags_follow_the_same_course(run, model, flags):
    assert_same_course(run(model, "--epochs", "4", *flags), steps=24)
