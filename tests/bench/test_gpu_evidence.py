"""What the GPU kernels compile to: how it is read and computed, and what is stored of it."""

import random
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from clipfast_bench.gpu import calls, cuda_kernels, evidence, page, triton_kernels
from clipfast_bench.gpu.command import cuda_evidence, write_page
from clipfast_bench.gpu.evidence import LeftOut
from clipfast_bench.gpu.instructions import Missing, count_amdgcn, count_sass
from clipfast_bench.gpu.limits import MULTIPROCESSORS, occupancy
from clipfast_bench.gpu.ptxas import Compiled, parse
from clipfast_kernels.ops.attention.cost import attention_bytes, attention_flops
from clipfast_kernels.ops.contrastive.cost import contrastive_flops, contrastive_hbm_bytes
from clipfast_kernels.ops.quick_gelu.cost import quick_gelu_hbm_bytes

from clipfast.plan.hardware import GPUS

ROOT = Path(__file__).parents[2]
STORED = evidence.read(ROOT / evidence.STORED)
KIB = 1024

# As nvcc 13.0 printed it for two kernels of which one spills.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4hugePf' for 'sm_90'
ptxas info    : Function properties for _Z4hugePf
    304 bytes stack frame, 300 bytes spill stores, 412 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 304 bytes cumulative stack size
ptxas info    : Compile time = 12.3 ms
ptxas info    : Compiling entry function '_Z5tidyPf' for 'sm_90'
ptxas info    : Function properties for _Z5tidyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 440 bytes cmem[0]
"""


@pytest.mark.parametrize(
    ("needs", "blocks", "limited_by"),
    [
        # The programming guide's own: 2 × 512 × 64 registers are all there are; one more halves it.
        ((16, 64, 0), 2, "registers"),
        ((16, 65, 0), 1, "registers"),
        ((32, 32, 0), 2, "registers"),
        ((8, 255, 0), 1, "registers"),  # 8,160 registers a warp, dealt out as 8,192
        ((4, 32, 0), 16, "registers"),
        ((4, 33, 0), 12, "registers"),  # 1,056 registers a warp, dealt out as 1,280
        ((1, 32, 0), 32, "blocks"),
        ((4, 16, 0), 16, "warps"),
        ((4, 32, 163 * KIB), 1, "shared memory"),
        ((4, 32, 81 * KIB), 2, "shared memory"),  # each with the system's KiB
        ((4, 32, 81 * KIB + 1), 1, "shared memory"),
        ((4, 32, 163 * KIB + 1), 0, "shared memory of a block"),
        ((9, 255, 0), 0, "registers of a block"),  # nine warps, taken as twelve
    ],
)
def test_occupancy_of_an_a100_is_that_of_the_textbook(needs, blocks, limited_by):
    warps, registers, shared = needs
    found = occupancy(
        MULTIPROCESSORS["sm_80"], warps=warps, registers=registers, shared_bytes=shared
    )
    assert (found.blocks, found.limited_by) == (blocks, limited_by)
    assert found.share == blocks * warps / 64


def test_tensor_memory_limits_blocks_on_sm_100():
    needs = {"warps": 4, "registers": 64, "shared_bytes": 1024}
    of = MULTIPROCESSORS["sm_100"]
    assert occupancy(of, **needs).blocks == 8
    found = occupancy(of, **needs, tensor_columns=256)
    assert (found.blocks, found.limited_by) == (2, "tensor memory")


HEADER = """
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
    int major, regs, threads; size_t shared, per_sm, per_block;
    while (scanf("%d %d %d %zu", &major, &regs, &threads, &shared) == 4
           && scanf("%zu %zu", &per_sm, &per_block) == 2) {
        cudaOccDeviceProp p;
        p.computeMajor = major; p.computeMinor = 0;
        p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = 2048;
        p.regsPerBlock = 65536; p.regsPerMultiprocessor = 65536; p.warpSize = 32;
        p.sharedMemPerBlock = 49152; p.sharedMemPerMultiprocessor = per_sm; p.numSms = 100;
        p.sharedMemPerBlockOptin = per_block; p.reservedSharedMemPerBlock = 1024;
        cudaOccFuncAttributes a;
        a.maxThreadsPerBlock = 1024; a.numRegs = regs; a.sharedSizeBytes = 0;
        a.partitionedGCConfig = PARTITIONED_GC_OFF; a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        a.maxDynamicSharedSizeBytes = shared; a.numBlockBarriers = 1;
        cudaOccDeviceState s; s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult r;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, shared)) return 1;
        printf("%d\\n", r.activeBlocksPerMultiprocessor);
    }
}
"""


def toolkit_header():
    spec = find_spec("nvidia")
    folders = list(spec.submodule_search_locations) if spec else []
    found = [p for f in folders for p in Path(f).glob("*/include/cuda_occupancy.h")]
    return found[0].parent if found else None


@pytest.mark.slow
@pytest.mark.skipif(toolkit_header() is None, reason="there is no cuda_occupancy.h")
def test_occupancy_is_that_of_nvidias_calculator(tmp_path):
    source, program = tmp_path / "a.cpp", tmp_path / "a"
    source.write_text(HEADER)
    subprocess.run(["c++", "-w", f"-I{toolkit_header()}", source, "-o", program], check=True)
    draw = random.Random(0)
    lines, ours = [], []
    for _ in range(3000):
        name = draw.choice(list(MULTIPROCESSORS))
        of = MULTIPROCESSORS[name]
        warps, registers = draw.randint(1, 32), draw.randint(16, 255)
        shared = draw.choice((0, draw.randint(0, of.block_shared_bytes)))
        major = name.removeprefix("sm_")[:-1]
        lines.append(
            f"{major} {registers} {warps * 32} {shared} {of.shared_bytes} {of.block_shared_bytes}"
        )
        found = occupancy(of, warps=warps, registers=registers, shared_bytes=shared)
        ours.append(found.blocks)
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    assert list(map(int, done.stdout.split())) == ours


def test_a_compilers_report_is_read_with_its_spills():
    assert parse(REPORT) == [
        Compiled("_Z4hugePf", "sm_90", 32, 304, 412, 0),
        Compiled("_Z5tidyPf", "sm_90", 40, 0, 0, 2048),
    ]
    assert parse("ptxas info    : 0 bytes gmem\n") == []
    with pytest.raises(ValueError, match="says nothing of _Z5tidyPf"):
        parse(REPORT.replace("Used 40 registers", "Used"))


def test_tensor_core_instructions_are_counted_by_their_names():
    sass = """
        /*0000*/ HMMA.16816.F32.BF16 R4, R8, R12, R4 ; /* 0x00 */
        /*0010*/ FFMA R4, R8, R12, R4 ;
        /*0020*/ HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4].tnspB, RZ, !UPT ;
        /*0030*/ UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR5], tmem[UR8], idesc[UR9], !UPT ;
        /*0040*/ HMMA.16816.F32 R4, R8, R12, R4 ;
    """
    assert count_sass(sass) == {"HMMA": 2, "HGMMA": 1, "UTCHMMA": 1}
    assert count_amdgcn("v_mfma_f32_32x32x8_f16 a[0:15], v[0:1]\nv_fma_f32 v0, v1") == {"v_mfma": 1}


def test_a_compilers_name_tells_pass_dtype_and_width():
    whole = "_ZN8clipfast16attention_kernelINS_12ForwardStripINS_4HalfELi64EEEEEvNS_6LaunchIT_EE"
    part = "INS_8KeyStripINS_8BFloat16ELi128ELNS_8GradientE2EEEEEvNS_6LaunchIT_EE"
    assert cuda_kernels.kernel_of(whole) == ("fwd", "fp16", 64, "")
    assert cuda_kernels.kernel_of(part) == ("bwd_kv", "bf16", 128, " of values")
    with pytest.raises(ValueError, match="expected a kernel"):
        cuda_kernels.kernel_of("_Z4hugePf")


def test_no_stored_kernel_spills_or_needs_more_than_its_target_has():
    for one in STORED.kernels:
        where = (one.kernel, one.configuration, one.launch, one.target)
        assert one.spilled_bytes == 0, where
        assert one.shared_bytes <= one.shared_limit, where
        assert 0 < one.registers <= (512 if one.target == "gfx942" else 255), where
        assert one.blocks is None or one.blocks >= 1, where


def test_every_kernel_is_stored_for_every_target():
    pytest.importorskip("triton")
    found = {
        (f"{k.kernel} {k.configuration}", k.target)
        for k in STORED.kernels
        if k.written_in == "Triton"
    }
    assert found == set(triton_kernels.jobs())
    cuda = {(k.kernel, k.configuration, k.target) for k in STORED.kernels if k.written_in == "CUDA"}
    # Two dtypes, five widths, three passes; the keys' pass is two kernels at width 128.
    assert len(cuda) == 2 * 2 * (5 * 3 + 1)


def test_products_of_16_bits_are_on_tensor_cores_and_float32_is_not_on_nvidias():
    for one in STORED.kernels:
        of_16 = not one.configuration.startswith("fp32")
        if one.target == "gfx942" and not of_16:  # whose v_mfma multiplies float32 exactly
            continue
        with_products = not one.kernel.startswith(("quick_gelu", "spans", "single_query"))
        assert (one.tensor_instructions > 0) == (of_16 and with_products), one


def test_what_is_stored_calls_itself_not_timed():
    text = (ROOT / evidence.STORED).read_text()
    assert (
        '"title": "GPU kernels of clipfast: compiled, interpreted or emulated, not timed"' in text
    )
    assert page.markdown(STORED).splitlines()[0].endswith(evidence.STATUS)


def test_the_page_is_made_of_the_stored_json():
    assert (ROOT / page.STORED).read_text() == page.markdown(STORED)


def test_what_is_stored_is_written_as_it_was_read():
    assert evidence.as_json(STORED) == (ROOT / evidence.STORED).read_text()


def test_stored_floors_are_those_of_the_cost_formulas():
    pytest.importorskip("triton")
    all_calls = [*triton_kernels.all_calls(triton_kernels.jobs()), *cuda_kernels.all_calls()]
    assert evidence.make_record({}, all_calls, []).calls == STORED.calls
    assert {k.call for k in STORED.kernels} <= set(STORED.calls)


def test_a_floor_is_the_longer_of_arithmetic_and_memory():
    a100, h100 = GPUS["A100"], GPUS["H100"]
    call = calls.contrastive("bf16")
    assert call.flops == contrastive_flops(65536, 512) == 4 * 2 * 65536**2 * 512
    assert call.hbm_bytes == contrastive_hbm_bytes(65536, 512, 2)
    assert call.floor(a100) == pytest.approx(call.flops / 312e12)
    assert calls.contrastive("fp32").floor(h100) == pytest.approx(call.flops / 67e12)
    moved = calls.quick_gelu("fp16", backward=True)
    assert moved.floor(h100) == pytest.approx(quick_gelu_hbm_bytes(39321600, 2, True) / 3.35e12)
    assert (call.bound_by(a100), moved.bound_by(a100)) == ("arithmetic", "memory")


def test_a_backward_is_what_both_directions_cost_more_than_the_forward():
    forward, backward = (calls.attention("257", 80, "fp16", b) for b in (False, True))
    lengths = [(257, 257)] * 64
    assert forward.flops + backward.flops == attention_flops(64 * 257**2, 16, 80)
    assert forward.hbm_bytes + backward.hbm_bytes == attention_bytes(lengths, 16, 80, 2)
    assert backward.flops == 2.5 * forward.flops


def test_without_nvcc_the_cuda_kernels_are_left_out_with_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    found = cuda_evidence(ROOT)
    assert found == LeftOut("CUDA kernels", "nvcc was not found on the PATH or in CUDA_HOME")
    triton_alone = [k for k in STORED.kernels if k.written_in == "Triton"]
    record = evidence.Record({}, STORED.calls, tuple(triton_alone), (found,))
    assert "Left out: CUDA kernels: nvcc was not found" in page.markdown(record)


def test_without_the_source_the_cuda_kernels_are_left_out_with_a_reason(monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    found = cuda_evidence(tmp_path)
    assert "csrc/cuda/attention.cu is not there" in found.reason


def test_a_page_and_its_picture_are_written_in_the_same_bytes_twice(tmp_path):
    def files(folder):
        return [path.read_bytes() for path in write_page(STORED, folder)]

    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.slow
def test_a_cuda_kernel_compiled_again_is_what_is_stored():
    try:
        nvcc, version = cuda_kernels.find_nvcc(), cuda_kernels.version()
    except Missing as why:
        pytest.skip(str(why))
    if version != STORED.versions["nvcc"]:
        pytest.skip(f"stored is what nvcc {STORED.versions['nvcc']} made; here is {version}")
    only = "ForwardStripINS_4HalfELi64E"
    again = cuda_kernels.compile_for(nvcc, ROOT, "sm_90", only)
    kept = [
        k
        for k in STORED.kernels
        if (k.kernel, k.configuration, k.target) == ("attention_fwd", "fp16 WIDTH=64", "sm_90")
    ]
    assert again == kept


@pytest.mark.slow
def test_a_triton_kernel_compiled_again_is_what_is_stored():
    triton = pytest.importorskip("triton")
    if triton.__version__ != STORED.versions["triton"]:
        pytest.skip(f"stored is what triton {STORED.versions['triton']} made")
    again = triton_kernels.compile_one(("quick_gelu_fwd_kernel bf16", "sm_90"))
    assert again in STORED.kernels
