"""How many blocks of a kernel one multiprocessor holds at a time, by what the kernel needs of it.

Source: the table "Technical Specifications per Compute Capability" of the CUDA programming guide
for the limits; the occupancy calculator of the CUDA toolkit (cuda_occupancy.h) for how registers
and shared memory are dealt out; PTX ISA, tcgen05.alloc, for tensor memory.
"""

from __future__ import annotations

from typing import NamedTuple

_KIB = 1024
_WARP = 32  # threads


class Multiprocessor(NamedTuple):
    """Attributes:
    warps, blocks: that it holds at most.
    registers: of 32 bits, dealt out by warp in each of its four partitions.
    shared_bytes: of all blocks together.
    block_shared_bytes: that one block may ask for.
    tensor_columns: of tensor memory; 0 where there is none.
    """

    warps: int
    blocks: int
    registers: int
    shared_bytes: int
    block_shared_bytes: int
    tensor_columns: int = 0


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 64 * _KIB, 164 * _KIB, 163 * _KIB),
    "sm_90": Multiprocessor(64, 32, 64 * _KIB, 228 * _KIB, 227 * _KIB),
    "sm_100": Multiprocessor(64, 32, 64 * _KIB, 228 * _KIB, 227 * _KIB, tensor_columns=512),
}
_PARTITIONS = 4
_REGISTER_UNIT = 256  # registers: what a warp gets is a multiple
_SHARED_UNIT = 128  # bytes
_SHARED_RESERVED = _KIB  # of each block, for the system


class Occupancy(NamedTuple):
    """Attributes:
    blocks: that a multiprocessor holds at a time.
    share: of the warps that it could hold.
    limited_by: what a further block has no room in.
    """

    blocks: int
    share: float
    limited_by: str


def occupancy(
    of: Multiprocessor, *, warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0
) -> Occupancy:
    """The theoretical occupancy: min over all resources of (what there is // what a block takes).

    Args:
        of: the multiprocessor.
        warps: of a block.
        registers: of a thread.
        shared_bytes: of a block, static and dynamic together.
        tensor_columns: of a block.
    """
    if shared_bytes > of.block_shared_bytes:
        return Occupancy(0, 0.0, "shared memory of a block")
    of_warp = _up(registers * _WARP, _REGISTER_UNIT)
    # A block starts only where its warps, dealt evenly to the partitions, could all have theirs.
    if of_warp * _up(warps, _PARTITIONS) > of.registers:
        return Occupancy(0, 0.0, "registers of a block")
    warps_by_registers = of.registers // _PARTITIONS // of_warp * _PARTITIONS
    fitting = {
        "registers": warps_by_registers // warps,
        "shared memory": of.shared_bytes // _up(shared_bytes + _SHARED_RESERVED, _SHARED_UNIT),
        "warps": of.warps // warps,
        "blocks": of.blocks,
    }
    if tensor_columns:
        fitting["tensor memory"] = of.tensor_columns // tensor_columns
    limit = min(fitting, key=lambda resource: fitting[resource])
    return Occupancy(fitting[limit], fitting[limit] * warps / of.warps, limit)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
