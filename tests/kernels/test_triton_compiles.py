"""Every Triton kernel as it is launched, compiled for GPUs that are not here."""

import os

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from clipfast_kernels.ops import triton_aot

LAUNCHES = {launch.name: launch for launch in triton_aot.launches()}
# One of each kernel, in half precision, for a GPU of each maker in the quick run; all in the slow.
QUICK_TARGETS = {"sm_90", "gfx942"}
QUICK = {
    "contrastive_fwd_kernel fp16 SYMMETRIC",
    "contrastive_bwd_kernel fp16",
    "sigmoid_fwd_kernel fp16 GRADIENT",
    "positive_kernel fp16",
    "similarity_kernel fp16 HAS_POSITIVES K=16",
    "quick_gelu_fwd_kernel fp16",
    "quick_gelu_bwd_kernel fp16",
    "spans_kernel fp32 OF_KEYS",
    "attention_fwd_kernel fp16 WIDTH=64",
    "attention_bwd_queries_kernel fp16 WIDTH=64 SPANS",
    "attention_bwd_keys_kernel fp16 WIDTH=64 SPANS",
    "single_query_fwd_kernel fp16 WIDTH=64",
    "single_query_bwd_kernel fp16 WIDTH=64 PACKED_Q PACKED_K",
}


def check(name, target):
    launch = LAUNCHES[name]
    found = triton_aot.compile_for(launch, target)
    assert found.spilled_bytes == 0
    assert found.shared_bytes <= target.shared_limit
    assert 0 < found.registers <= (512 if target.gpu.backend == "hip" else 255)
    if launch.tensor_cores and launch.dtype != "fp32":
        assert found.tensor_core == target.tensor_core


def cases(quick):
    return [
        pytest.param(name, target, id=f"{name}-{target.name}")
        for name in LAUNCHES
        for target in triton_aot.TARGETS
        if quick == (name in QUICK and target.name in QUICK_TARGETS)
        and not is_as_in_fp16(name, target)
    ]


def is_as_in_fp16(name, target):
    """On NVIDIA's GPUs bf16 differs from fp16 in the instructions' names alone: registers, spills
    and shared memory were equal wherever compared. One of each kernel stands for it."""
    of_nvidia = target.gpu.backend == "cuda" and LAUNCHES[name].dtype == "bf16"
    return of_nvidia and name.replace("bf16", "fp16") not in QUICK


@pytest.mark.parametrize(("name", "target"), cases(quick=True))
def test_a_kernel_compiles_without_spills_onto_tensor_cores(name, target):
    check(name, target)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), cases(quick=False))
def test_every_configuration_compiles_without_spills_onto_tensor_cores(name, target):
    check(name, target)
