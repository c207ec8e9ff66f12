"""Every `--precision` of open_clip trains on a CPU, and means what it means there."""

import re

import pytest
import torch

from clipfast.models.linear import Linear
from clipfast.models.precision import PRECISIONS
from clipfast.train import parse_args
from clipfast.train.engines.plain import PlainEngine
from clipfast.train.loop import train
from clipfast.train.optim.optimizers import adamw

EVERYTHING = {"pure_bf16": torch.bfloat16, "pure_fp16": torch.float16}
MATRICES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def flags_of(digit_shards, tiny_model, folder):
    """Of a run of six steps to the epoch."""
    return [
        *("--train-data", digit_shards.train_pattern),
        *("--model", tiny_model),
        *("--batch-size", "16"),
        *("--epochs", "1"),
        *("--warmup", "2"),
        *("--lr", "1e-3"),
        *("--workers", "1"),
        *("--logs", str(folder / "logs")),
    ]


@pytest.fixture
def flags(digit_shards, tiny_model, tmp_path):
    return flags_of(digit_shards, tiny_model, tmp_path)


def run(flags, *more):
    return train(parse_args([*flags, *more]))


@pytest.fixture(scope="module")
def first_loss(digit_shards, tiny_model, tmp_path_factory):
    flags = flags_of(digit_shards, tiny_model, tmp_path_factory.mktemp("reference"))
    return run(flags, "--name", "a", "--precision", "fp32").losses[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_falls_and_begins_as_in_float32(flags, precision, first_loss):
    written = ["--name", "a", "--precision", precision, "--device", "cpu", "--epochs", "7"]
    written += ["--eps", "1e-4"]  # which float16 can hold
    losses = run(flags, *written, "--grad-clip-norm", "1", "--save-frequency", "0").losses
    # bfloat16's products are summed in another order, and rounded otherwise, on each processor.
    tolerance = torch.finfo(torch.bfloat16).eps / 2 if "bf" in precision else 2e-3
    assert losses[0] == pytest.approx(first_loss, rel=tolerance)
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])


@pytest.mark.parametrize(
    ("written", "dtype"),
    [
        (["--precision", "amp", "--device", "cpu"], torch.float16),
        (["--precision=amp", "--device=cpu"], torch.float16),
        (["--precision", "amp"], torch.float32),
        (["--device", "cpu"], torch.float32),
        ([], torch.float32),
        (["--precision", "amp_bf16"], torch.bfloat16),
    ],
)
def test_a_cpu_autocasts_to_float16_only_where_it_was_written(flags, written, dtype, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the default device is a GPU")
    seen = set()
    original = Linear.forward
    monkeypatch.setattr(
        Linear,
        "forward",
        lambda self, x: (out := original(self, x), seen.add(out.dtype))[0],
    )
    log = run(flags, "--name", "a", *written).folder.log.read_text()
    assert seen == {dtype}
    warned = "--precision amp: a CPU computes in fp32" in log
    assert warned == (dtype == torch.float32)
    precision = "fp32" if warned else ("amp_bf16", "amp")[dtype == torch.float16]
    assert re.search(rf" precision +{precision}\b", log)


def test_amps_fall_back_on_a_cpu_has_the_bits_of_float32(flags):
    both = run(flags, "--name", "a"), run(flags, "--name", "b", "--precision", "fp32")
    assert both[0].losses == both[1].losses


@pytest.mark.parametrize("precision", [*MATRICES, *EVERYTHING])
def test_weights_are_kept_in_the_dtypes_that_open_clip_keeps(flags, precision):
    summary = run(flags, "--name", "a", "--precision", precision)
    saved = torch.load(summary.folder.checkpoints / "epoch_1.pt", weights_only=True)["state_dict"]
    halved = (MATRICES | EVERYTHING)[precision]
    rest = EVERYTHING.get(precision, torch.float32)
    assert saved["transformer.resblocks.0.mlp.c_fc.weight"].dtype == halved
    assert saved["visual.conv1.weight"].dtype == saved["text_projection"].dtype == halved
    for name in ("ln_final.weight", "token_embedding.weight", "logit_scale"):
        assert saved[name].dtype == rest, name


def test_the_scaler_is_saved_as_open_clip_does_and_goes_on_where_it_was(flags):
    flags = [*flags, "--precision", "amp", "--device", "cpu", "--epochs", "3"]
    whole = run(flags, "--name", "whole")
    first = torch.load(whole.folder.checkpoints / "epoch_1.pt", weights_only=True)
    last = torch.load(whole.folder.checkpoints / "epoch_3.pt", weights_only=True)
    assert first["scaler"]["_growth_tracker"] < last["scaler"]["_growth_tracker"]
    torch.amp.GradScaler("cpu").load_state_dict(last["scaler"])
    resumed = run(
        flags, "--name", "again", "--resume", str(whole.folder.checkpoints / "epoch_1.pt")
    )
    assert resumed.losses == whole.losses[6:]
    again = torch.load(resumed.folder.checkpoints / "epoch_3.pt", weights_only=True)
    assert again["scaler"] == last["scaler"]


@pytest.mark.parametrize("max_norm", [None, 0.01])
def test_scaling_the_loss_changes_no_step_and_no_clipping(max_norm):
    after = []
    for scaler in (None, torch.amp.GradScaler("cpu")):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        model.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        optimizer = adamw(model, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)
        engine = PlainEngine(model, optimizer, encoder=None, max_norm=max_norm, scaler=scaler)
        for _ in range(2):
            engine.backward(model(torch.ones(2, 5)).square().sum() * model.logit_scale)
            engine.step(0.1)
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        after.append([*model.parameters(), *moments])
    for plain, scaled in zip(*after, strict=True):
        torch.testing.assert_close(scaled, plain)


def test_a_step_whose_gradients_overflow_is_left_out(flags, monkeypatch):
    original = torch.amp.GradScaler.__init__
    monkeypatch.setattr(
        torch.amp.GradScaler,
        "__init__",
        lambda self, device: original(self, device, init_scale=2.0**120),
    )
    flags = [*flags, "--precision", "amp", "--device", "cpu", "--grad-clip-norm", "1"]
    summary = run(flags, "--name", "a")
    saved = torch.load(summary.folder.checkpoints / "epoch_1.pt", weights_only=True)
    assert saved["scaler"]["scale"] == 2.0**114
    assert not any(state["step"] for state in saved["optimizer"]["state"].values())
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
