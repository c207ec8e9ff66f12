"""Evidence of one kernel on one target, and the file that all of it is kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clipfast_bench.gpu.calls import PAPER, Call
from clipfast_bench.gpu.limits import MULTIPROCESSORS, Occupancy, occupancy

STATUS = "compiled, interpreted or emulated, not timed"
STORED = Path("bench/results/gpu_evidence.json")


@dataclass(frozen=True)
class Evidence:
    """Attributes:
    kernel: its name.
    written_in: "Triton" or "CUDA".
    configuration: dtype and flags.
    launch: what is chosen at launch; empty where the configuration says it all.
    call: key of the stated call that the kernel is all or a part of.
    registers: of a thread.
    spilled_bytes: of a thread, to memory.
    scalars_in_lanes: AMD: scalar registers kept in lanes of vector registers.
    static_shared_bytes, dynamic_shared_bytes: of a block.
    tensor_columns: of a block, in tensor memory.
    tensor_instruction: that most of its tensor-core instructions are; None without any.
    tensor_instructions: how many are in its code.
    blocks, occupancy, limited_by: as `limits.Occupancy`; None where its rules are not known here.
    """

    kernel: str
    written_in: str
    configuration: str
    launch: str
    target: str
    call: str
    registers: int
    spilled_bytes: int
    scalars_in_lanes: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    shared_limit: int
    tensor_columns: int
    warps: int
    stages: int | None
    tensor_instruction: str | None
    tensor_instructions: int
    blocks: int | None = None
    occupancy: float | None = None
    limited_by: str | None = None

    @property
    def shared_bytes(self) -> int:
        return self.static_shared_bytes + self.dynamic_shared_bytes

    def with_occupancy(self) -> Evidence:
        """The same with what follows for its multiprocessor, where that is known."""
        found = self._occupancy()
        if found is None:
            return self
        share = round(found.share, 6)
        return replace(self, blocks=found.blocks, occupancy=share, limited_by=found.limited_by)

    def _occupancy(self) -> Occupancy | None:
        multiprocessor = MULTIPROCESSORS.get(self.target)
        if multiprocessor is None:
            return None
        return occupancy(
            multiprocessor,
            warps=self.warps,
            registers=self.registers,
            shared_bytes=self.shared_bytes,
            tensor_columns=self.tensor_columns,
        )


@dataclass(frozen=True)
class LeftOut:
    what: str
    reason: str


@dataclass(frozen=True)
class Record:
    """Attributes:
    versions: of the compilers.
    calls: key to what `as_json` makes of the call.
    """

    versions: dict[str, str]
    calls: dict[str, dict[str, Any]]
    kernels: tuple[Evidence, ...]
    left_out: tuple[LeftOut, ...]


def call_record(call: Call) -> dict[str, Any]:
    """A call's floors on every GPU on paper, in seconds."""
    return {
        "flops": call.flops,
        "hbm_bytes": call.hbm_bytes,
        "intensity": call.intensity,
        "floor_seconds": {gpu.name: call.floor(gpu) for gpu in PAPER},
        "bound_by": {gpu.name: call.bound_by(gpu) for gpu in PAPER},
    }


def make_record(
    versions: dict[str, str],
    calls: Iterable[Call],
    kernels: Iterable[Evidence],
    left_out: Sequence[LeftOut] = (),
) -> Record:
    return Record(
        versions,
        {call.key: call_record(call) for call in calls},
        tuple(kernels),
        tuple(left_out),
    )


def as_json(record: Record) -> str:
    """A kernel to a line, so that a change shows as the lines that changed."""
    head = {
        "title": f"GPU kernels of clipfast: {STATUS}",
        "status": STATUS,
        "versions": record.versions,
        "multiprocessors": {name: limits._asdict() for name, limits in MULTIPROCESSORS.items()},
        "gpus": {
            gpu.name: {
                "tensor_flops": gpu.tensor_flops,
                "fp32_flops": gpu.fp32_flops,
                "hbm_bytes": gpu.hbm_bytes,
                "source": gpu.sheet,
            }
            for gpu in PAPER
        },
        "left_out": [asdict(one) for one in record.left_out],
        "calls": record.calls,
    }
    text = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(asdict(k), ensure_ascii=False)}" for k in record.kernels)
    return f'{text},\n "kernels": [\n{lines}\n ]\n}}\n'


def read(path: Path) -> Record:
    """Raises:
    OSError: it cannot be read.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Record(
        stored["versions"],
        stored["calls"],
        tuple(Evidence(**one) for one in stored["kernels"]),
        tuple(LeftOut(**one) for one in stored["left_out"]),
    )
