"""DeepSpeed's flags, the user's own file, and what is looked at before the first step."""

import json

import pytest
import torch

from clipfast.errors import UserError
from clipfast.ranks.world import World
from clipfast.train import parse_args
from clipfast.train.engines.deepspeed import probe
from clipfast.train.engines.deepspeed.config import (
    forward_precision,
    half_precision,
    make_config,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def parse(*more):
    return parse_args(["--train-data", "unread", "--batch-size", "8", *more])


def config_of(*more, device=CPU, world_size=2, trained=1000):
    return make_config(parse("--precision", "fp32", *more), device, world_size, trained)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return "--deepspeed-config", str(path)

    return write


def test_what_the_launcher_and_its_users_write_is_taken():
    args = parse("--deepspeed", "--local_rank=1")
    assert (args.zero_stage, args.local_rank) == (None, 1)
    assert parse("--local-rank", "3", "--zero-stage", "2").zero_stage == 2


def test_the_file_alone_chooses_the_engine_and_the_stage(file):
    assert parse(*file({"zero_optimization": {"stage": 2}})).zero_stage == 2
    assert parse(*file({})).zero_stage == 0
    _, path = file({})
    assert parse("--deepspeed_config", path, "--zero-stage", "3").zero_stage == 3


def test_flags_become_the_configuration():
    config = config_of("--zero-stage", "1", "--accum-freq", "3", "--grad-clip-norm", "0.5")
    assert config["train_batch_size"] == 8 * 3 * 2
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 1
    assert config["zero_optimization"]["overlap_comm"] is False


def test_gradients_are_clipped_only_where_it_was_asked_for():
    assert config_of("--zero-stage", "1")["gradient_clipping"] == 0  # deepspeed's default is 1


def test_what_the_file_adds_is_honoured(file):
    given = {
        "gradient_clipping": 2.0,
        "train_micro_batch_size_per_gpu": "auto",
        "zero_optimization": {"stage": 3, "overlap_comm": True, "stage3_max_live_parameters": 7},
    }
    config = config_of(*file(given))
    assert config["gradient_clipping"] == 2.0
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["zero_optimization"]["overlap_comm"] is True
    assert config["zero_optimization"]["stage3_max_live_parameters"] == 7


@pytest.mark.parametrize(
    ("more", "given", "key"),
    [
        ([], {"train_batch_size": 3}, "train_batch_size"),
        ([], {"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu"),
        (["--accum-freq", "2"], {"gradient_accumulation_steps": 1}, "gradient_accumulation_steps"),
        (["--grad-clip-norm", "1"], {"gradient_clipping": 2.0}, "gradient_clipping"),
        ([], {"bf16": {"enabled": True}}, "bf16.enabled"),
        ([], {"fp16": {"enabled": True}}, "fp16.enabled"),
        (["--precision", "amp_bf16"], {"bf16": {"enabled": False}}, "bf16.enabled"),
        (["--zero-stage", "1"], {"zero_optimization": {"stage": 2}}, "zero_optimization.stage"),
    ],
)
def test_a_file_that_contradicts_a_flag_is_refused(file, more, given, key):
    with pytest.raises(UserError, match=f"{key}: expected .*, as the flags say, or no such key"):
        config_of(*file(given), *more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        ({"zero_optimization": True}, "expected a JSON object, its zero_optimization one too"),
        ({"optimizer": {"type": "Adam"}}, "expected no 'optimizer': --opt and its flags say it"),
        ({"scheduler": {}}, "expected no 'scheduler'"),
        ({"stage3_prefetch_bucket_size": 5}, "inside zero_optimization; got it beside"),
        ({"tensor_parallel": {}}, "expected keys among .*; got 'tensor_parallel'"),
        ({"bf16": {"bf16_optimizer_states": True}}, "alone; got 'bf16_optimizer_states'"),
        ({"zero_optimization": {"stage": 4}}, "expected 0, 1, 2 or 3; got 4"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 1}}}, "zenflow: expected none"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "offload_optimizer.device: expected none or cpu; got 'nvme'",
        ),
    ],
)
def test_a_file_that_cannot_be_honoured_is_refused_in_one_sentence(file, given, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*file(given))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="ds.json: cannot be read: No such file"):
        parse("--deepspeed-config", str(tmp_path / "ds.json"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--zero-offload", "optimizer"], "expected --zero-stage 1, 2 or 3; got none"),
        (["--zero-offload", "optimizer", "--zero-stage", "0"], "expected --zero-stage 1, 2 or 3"),
        (["--zero-offload", "param", "--zero-stage", "2"], "expected --zero-stage 3; got 2"),
        (["--torchcompile", "--zero-stage", "3"], "expected --zero-stage 0, 1 or 2; got 3"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(more, message):
    with pytest.raises(UserError, match=message):
        parse(*more)


def test_offloading_goes_to_the_cpu_in_pinned_memory_beside_a_gpu():
    section = config_of("--zero-stage", "3", "--zero-offload", "param", device=GPU)
    wanted = {"device": "cpu", "pin_memory": True}
    assert section["zero_optimization"]["offload_optimizer"] == wanted
    assert section["zero_optimization"]["offload_param"] == wanted
    section = config_of("--zero-stage", "1", "--zero-offload", "optimizer")
    assert section["zero_optimization"]["offload_optimizer"]["pin_memory"] is False
    assert "offload_param" not in section["zero_optimization"]


@pytest.mark.parametrize(
    ("precision", "device", "half", "forward"),
    [
        ("fp32", CPU, None, "fp32"),
        ("amp", CPU, None, "fp32"),  # as everywhere on a CPU
        ("amp", GPU, "fp16", "pure_fp16"),
        ("amp_bf16", CPU, "bf16", "pure_bf16"),
        ("bf16", GPU, "bf16", "pure_bf16"),
        ("pure_fp16", GPU, "fp16", "pure_fp16"),
    ],
)
def test_precisions_are_deepspeeds_own(precision, device, half, forward):
    args = parse("--precision", precision, "--zero-stage", "1")
    assert half_precision(args, device) == half
    assert forward_precision(args, device) == forward
    config = make_config(args, device, 1, 1000)
    assert [kind for kind in ("bf16", "fp16") if config[kind]["enabled"]] == [half] * bool(half)


def test_another_release_of_deepspeed_is_refused_with_the_one_to_install():
    probe.check_version("0.19.8")
    with pytest.raises(UserError, match=r"expected 0.19 or later.*got 0.18.2: pip install"):
        probe.check_version("0.18.2")
    with pytest.raises(UserError, match=r"before 0.20; got 0.20.0"):
        probe.check_version("0.20.0")


def test_a_missing_deepspeed_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    with pytest.raises(UserError, match="expected the package deepspeed; got .*: pip install"):
        probe.open_deepspeed(World())


def test_a_missing_ninja_is_said_before_anything_is_compiled(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="expected ninja on PATH; got none: pip install ninja"):
        probe.check_builds("deepspeed")


@pytest.fixture
def deepspeed(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return pytest.importorskip("deepspeed")


def test_float16_on_a_cpu_is_refused_with_what_to_take(deepspeed):
    with pytest.raises(UserError, match="no float16 on this cpu: take amp_bf16 or fp32"):
        probe.check_precision(deepspeed, "fp16", "pure_fp16", 1)


def test_a_key_that_deepspeed_does_not_know_is_named(deepspeed):
    with pytest.raises(UserError, match="zero_optimization.bogus: .* not permitted; got 1"):
        probe.check_zero_section(deepspeed, {"stage": 1, "bogus": 1}, "ds.json")


def test_an_optimizer_that_needs_whole_layers_is_refused_where_they_are_cut():
    class Lamb(torch.optim.SGD):
        """By its name."""

    weights = [torch.zeros(2, requires_grad=True)]
    probe.check_optimizer(Lamb(weights), 0)
    with pytest.raises(UserError, match="got Lamb: take --opt adamw, or --zero-stage 0"):
        probe.check_optimizer(Lamb(weights), 1)
    with pytest.raises(UserError, match="got SGD: take --opt adamw"):
        probe.check_optimizer(torch.optim.SGD(weights), 0)
