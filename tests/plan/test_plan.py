"""`clipfast plan`: what it prints follows from its parts, and what cannot be is a sentence."""

import json

import matplotlib.image
import pytest
from test_calibration import LOADER, step, written

from clipfast.errors import UserError
from clipfast.plan.command import plan
from clipfast.plan.estimate import make_plan, outcome_of
from clipfast.plan.hardware import GPUS
from clipfast.plan.request import Choice, Model, Request

PAPER = ["--model", "ViT-L-14", "--gpus", "256", "--gpu", "V100", "--batch", "32768"]
PAPER += ["--samples", "12.8e9"]


def words(name, gpus=8, gpu="H100", batch=1024, samples=1e8):
    flags = {"--model": name, "--gpus": gpus, "--gpu": gpu, "--batch": batch, "--samples": samples}
    return [str(word) for pair in flags.items() for word in pair]


def planned(arguments, capsys):
    assert plan([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def vit_b_32():
    return Model("ViT-B-32", 18)


def request_of(model, **changes):
    given = {
        "model": model,
        "gpu": GPUS["H100"],
        "gpus": 64,
        "batch": 65536,
        "samples": 12.8e9,
        "precision": "amp_bf16",
        "choice": Choice(None, False, 1),
        "caption_tokens": 18,
        "network_bytes": 50e9,
        "cores": 1e6,
        "epochs": 32,
    }
    return Request(**given | changes)


@pytest.mark.slow
def test_the_papers_run_took_as_long_as_may_be(capsys):
    """With its 12 days among those that the range was made of; test_published leaves them out."""
    found = planned([*PAPER, "--grad-checkpointing"], capsys)
    assert found["open_clip_days"]["low"] < 12 < found["open_clip_days"]["high"]
    assert found["fits"]
    assert found["bound_by"] == "compute"


def test_the_json_has_the_keys_that_are_promised(small_vit, capsys):
    found = planned(words(small_vit), capsys)
    assert list(found)[:4] == ["days", "memory_gib", "communication", "bound_by"]
    assert list(found["memory_gib"]) == [
        "weights", "gradients", "optimizer", "activations", "loss",
    ]  # fmt: skip
    total = sum(found["memory_gib"].values()) + found["memory"]["working_gib"]
    assert found["memory"]["total_gib"] == pytest.approx(total)
    assert found["gpu_hours"] == pytest.approx(24 * 8 * found["days"])
    assert found["inputs"]["gpus"] == 8
    assert all(found["assumptions"].values())


def test_days_are_steps_of_arithmetic_over_speed(vit_b_32):
    request = request_of(vit_b_32, gpus=1, batch=512, utilisation=0.25)
    found = make_plan(request)
    towers = 512 * vit_b_32.flops.step / (0.25 * 989e12)
    of_loss = 4 * 2 * 512 * 512 * 512 / (0.25 * 989e12)  # of bfloat16 features
    assert found.outcome.step.total == pytest.approx(towers + of_loss)
    assert found.days(found.outcome.step) == pytest.approx(
        12.8e9 / 512 * (towers + of_loss) / 86400
    )
    assert found.utilisation.low == found.utilisation.high == 0.25


def test_a_step_waits_for_what_nothing_hides(vit_b_32):
    at_ease = outcome_of(request_of(vit_b_32), Choice(None, False, 1), 0.3, 1e12).step
    assert at_ease.waiting == 0
    slow_net = outcome_of(
        request_of(vit_b_32, network_bytes=1e6), Choice(None, False, 1), 0.3, 1e12
    ).step
    assert slow_net.exposed > slow_net.compute
    starved = outcome_of(request_of(vit_b_32), Choice(None, False, 1), 0.3, 1000).step
    assert starved.total == pytest.approx(65536 / 1000)


def test_what_bounds_a_run_is_said(vit_b_32):
    def bound(**changes):
        return make_plan(request_of(vit_b_32, utilisation=0.3, **changes)).bound_by

    assert bound() == "compute"
    assert bound(network_bytes=1e6) == "communication"
    assert bound(cores=100) == "feeding"
    assert bound(gpus=1) == "memory"


def test_recomputing_and_micro_batches_cost_forwards_and_spare_memory(vit_b_32):
    request = request_of(vit_b_32)
    plain, again, cut = (
        outcome_of(request, choice, 0.3, 1e12)
        for choice in (Choice(None, False, 1), Choice(None, True, 1), Choice(None, False, 4))
    )
    flops = vit_b_32.flops
    share = 1024 / (0.3 * 989e12)
    assert again.step.compute - plain.step.compute == pytest.approx(share * flops.blocks)
    assert cut.step.compute - plain.step.compute == pytest.approx(share * flops.forward * 3 / 4)
    assert again.memory.activations < plain.memory.activations / 2
    assert cut.memory.activations < plain.memory.activations / 3
    assert cut.largest < plain.largest  # features of all micro-batches are kept


def test_the_largest_micro_batch_fits_and_the_next_does_not(vit_b_32):
    request = request_of(vit_b_32)
    largest = make_plan(request).outcome.largest

    def fits(pairs):
        asked = request_of(vit_b_32, batch=64 * pairs)
        return outcome_of(asked, asked.choice, 0.3, 1e12).fits

    assert fits(largest)
    assert not fits(largest + 1)


def test_a_plan_that_does_not_fit_says_what_would(capsys):
    small = words("ViT-B-32", gpus=8, gpu="V100-16GB", batch=8192)
    assert plan(small) == 0
    said = capsys.readouterr().out
    assert "It does not fit: " in said
    assert "of what fits, --" in said
    assert "bound by    memory" in said


def test_a_plan_that_fits_nowhere_says_how_many_gpus_would_do(tmp_path, capsys):
    vision = {"image_size": 32, "layers": 4, "width": 8192, "patch_size": 32}
    large = tmp_path / "large.json"
    large.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"layers": 1}}))
    found = planned(words(str(large), gpus=1, gpu="V100-16GB", batch=64), capsys)
    assert "in no way on 1 GPUs; 8 would do" in found["advice"][0]
    alone = planned(words(str(large), gpus=1, gpu="V100-16GB", batch=1), capsys)
    assert "in no way on any number of V100-16GB that can share the batch" in alone["advice"][0]


def test_a_calibration_replaces_assumptions_and_is_named(small_vit, tmp_path, capsys):
    path = written(tmp_path, [step(small_vit), LOADER])
    found = planned([*words(small_vit), "--calibration", str(path)], capsys)
    assert found["assumptions"]["utilisation"].endswith("1 steps of one GPU (bench.json)")
    assert found["inputs"]["decode_rate"] == 400
    given = planned([*words(small_vit), "--calibration", str(path), "--decode-rate", "99"], capsys)
    assert given["inputs"]["decode_rate"] == 99
    assert given["assumptions"]["decoding"].endswith("--decode-rate")


def test_the_table_names_every_part_and_no_gpu_is_said_to_have_run(small_vit, capsys):
    assert plan(words(small_vit)) == 0
    said = capsys.readouterr().out
    for part in ("days", "GPU-hours", "bound by", "optimizer", "no GPU has run any of this"):
        assert part in said
    assert "published" in said


def test_files_hold_the_plan_and_its_picture(small_vit, tmp_path, capsys):
    stored, drawn = tmp_path / "plan.json", tmp_path / "plan.png"
    assert plan([*words(small_vit), "--json", str(stored), "--plot", str(drawn)]) == 0
    assert "days" in capsys.readouterr().out
    assert json.loads(stored.read_text())["bound_by"] == "feeding"
    assert matplotlib.image.imread(drawn).shape[1] == 1000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--batch": "32800"}, "--batch: expected a multiple of 256, .* the nearest is 32,768"),
        ({"--batch": "100"}, "got 100; the nearest is 256"),
        ({"--accum-freq": "3"}, "256 GPUs × 3 micro-batches; got 32,768; the nearest is 33,024"),
        ({"--gpu": "H10"}, "--gpu: expected one of V100, .* got 'H10'; the nearest is H100"),
        ({"--model": "ViT-Q-1"}, "model: expected a .json file or one of .* got 'ViT-Q-1'"),
        ({"--precision": "amp_bf16"}, "on a V100, whose tensor cores take no bfloat16"),
        ({"--precision": "fp8"}, "--precision: expected one of fp32, .* got 'fp8'"),
        ({"--utilisation": "40"}, "--utilisation: expected a share of the peak, .* got 40"),
        ({"--samples": "-1"}, "--samples: expected a positive number; got -1"),
        ({"--caption-tokens": "99"}, "--caption-tokens: expected 2 to 77, .* got 99"),
        ({"--gpus": "100"}, "as there are 100 GPUs; got 32,768; the nearest is 32,800"),
        ({"--plot": "plan.svg"}, "--plot plan.svg: expected a name that ends in .png"),
        ({"--json": "no/such/plan.json"}, "--json no/such/plan.json: expected a folder"),
    ],
)
def test_what_cannot_be_is_a_sentence_with_the_nearest_that_can(changes, sentence):
    flags = dict(zip(PAPER[::2], PAPER[1::2], strict=True)) | changes
    with pytest.raises(UserError, match=sentence):
        plan([word for pair in flags.items() for word in pair])


def test_a_tower_without_blocks_cannot_be_recomputed():
    with pytest.raises(UserError, match="expected a ViT or ResNet; got a conv tower"):
        plan([*words("digits-conv"), "--grad-checkpointing"])
