"""clipfast's losses inside open_clip's own trainer: open_clip_train 3.3.0, its flags, its loop."""

import json
import re
import tarfile

import pytest
import torch
import torch.nn.functional as F

from clipfast import ClipLoss, SigLipLoss
from clipfast.adapters.open_clip import fast_losses

open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_config(tmp_path):
    for name, extra in (("tiny-clip", {}), ("tiny-bias", {"init_logit_bias": -5.0})):
        (tmp_path / f"{name}.json").write_text(json.dumps(TINY | extra))
    open_clip.add_model_config(tmp_path)


@pytest.fixture
def csv(digit_shards, tmp_path):
    """The pairs as open_clip's CSV: its loader's shuffling is repeatable, webdataset's is not."""
    rows = ["filepath\ttitle"]
    with tarfile.open(digit_shards.folder / "train-000000.tar") as tar:
        tar.extractall(tmp_path / "images", filter="data")
    for image in sorted((tmp_path / "images").glob("*.jpg"))[:64]:
        rows.append(f"{image}\t{image.with_suffix('.txt').read_text()}")
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def losses_of_a_run(arguments, folder, name):
    from open_clip_train.main import main

    main([*arguments, "--logs", str(folder), "--name", name])
    log = (folder / name / "out.log").read_text()
    return [float(x) for x in re.findall(r"Contrastive_loss: ([\d.]+)", log)]


@pytest.mark.parametrize(
    ("model", "flags"),
    [("tiny-clip", []), ("tiny-clip", ["--accum-freq", "2"]), ("tiny-bias", ["--siglip"])],
)
def test_open_clips_trainer_reports_the_same_losses(csv, tiny_config, tmp_path, model, flags):
    pytest.importorskip("open_clip_train")
    arguments = [
        *("--train-data", csv, "--dataset-type", "csv", "--model", model, "--batch-size", "16"),
        *("--epochs", "1", "--workers", "0", "--precision", "fp32", "--device", "cpu"),
        *("--log-every-n-steps", "1", "--lr", "1e-3", "--warmup", "1", *flags),
        *("--aug-cfg", "scale=(1.0, 1.0)"),
    ]
    theirs = losses_of_a_run(arguments, tmp_path, "theirs")
    with fast_losses():
        assert open_clip.create_loss.__globals__["ClipLoss"] is ClipLoss
        ours = losses_of_a_run(arguments, tmp_path, "ours")
    assert len(theirs) >= 2
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_losses_are_open_clips_again_afterwards():
    before = open_clip.ClipLoss, open_clip.factory.SigLipLoss
    with fast_losses():
        assert open_clip.ClipLoss is ClipLoss
        assert open_clip.factory.SigLipLoss is SigLipLoss
    assert (open_clip.ClipLoss, open_clip.factory.SigLipLoss) == before
    with pytest.raises(KeyError), fast_losses():
        raise KeyError
    assert (open_clip.ClipLoss, open_clip.factory.SigLipLoss) == before


def both(make):
    theirs = type("Theirs", (), vars(open_clip.loss))
    ours = type("Ours", (), {"ClipLoss": ClipLoss, "SigLipLoss": SigLipLoss})
    return make(theirs), make(ours)


@pytest.mark.parametrize("make", [lambda m: m.ClipLoss(), lambda m: m.SigLipLoss()])
@pytest.mark.parametrize("output_dict", [False, True])
def test_value_gradients_and_output_are_open_clips(make, output_dict):
    results = []
    for loss in both(make):
        torch.manual_seed(0)
        image, text = (F.normalize(torch.randn(9, 6), dim=1).requires_grad_() for _ in range(2))
        scale, bias = (torch.tensor(v, requires_grad=True) for v in (20.0, -4.0))
        out = loss(image, text, scale, logit_bias=bias, output_dict=output_dict)
        if output_dict:
            assert list(out) == ["contrastive_loss"]
            out = out["contrastive_loss"]
        out.backward()
        results.append([out.detach(), image.grad, text.grad, scale.grad, bias.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def test_features_that_autocast_left_in_two_dtypes_are_taken():
    image, text = F.normalize(torch.randn(5, 8), dim=1), F.normalize(torch.randn(5, 8), dim=1)
    mixed = ClipLoss()(image.bfloat16(), text, 10.0)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, ClipLoss()(image, text, 10.0), rtol=2e-2, atol=0)


def test_what_cannot_be_honoured_is_a_sentence():
    with pytest.raises(ValueError, match="use_horovod: expected False"):
        ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl: expected bidir, .*; got 'ring'"):
        SigLipLoss(dist_impl="ring")
