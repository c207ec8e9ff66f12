"""How the CUDA kernels of attention cut a launch into blocks, and what that costs, on paper.

csrc/cuda/attention_sweep.cuh says what blocks, strips and tiles are. L tokens, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

ROWS = 16  # of a tile: what one tensor-core instruction takes
MOST_WARPS = 8
SHARED_BYTES = 163 * 1024  # that one block may have on sm_80
MULTIPROCESSORS = 108  # of an A100
PASSES = ("fwd", "bwd_q", "bwd_kv")


class Plan(NamedTuple):
    """Of one block: heads, warps, tiles of the other side held per head, strips per head."""

    heads: int
    warps: int
    tiles: int
    strips: int


def strip_rows(step: str, width: int) -> int:
    """Rows that one warp owns: queries, or in bwd_kv keys."""
    return 2 * ROWS if step != "bwd_kv" and width <= 64 else ROWS


def tile_bytes(step: str, width: int) -> int:
    """Of 16 rows of two matrices, and of bwd_kv's lse and delta."""
    return ROWS * (2 * 2 * width + (8 if step == "bwd_kv" else 0))


def plan(
    step: str,
    *,
    batch: int,
    heads: int,
    width: int,
    longest: int,
    typical: int,
    other_longest: int,
    multiprocessors: int = MULTIPROCESSORS,
) -> Plan:
    """The cut of one pass.

    Args:
        step: one of PASSES.
        batch: sequences.
        heads: of a token.
        width: D.
        longest: the longest sequence of the side that the pass's warps own.
        typical: the mean length there: what blocks are sized for.
        other_longest: the longest sequence of the other side, which goes through shared memory.
        multiprocessors: of the GPU.
    """
    rows, tile = strip_rows(step, width), tile_bytes(step, width)
    strips, usual = max(1, _ceil(longest, rows)), max(1, _ceil(typical, rows))
    tiles = max(1, _ceil(other_longest, ROWS))
    if tiles * tile > SHARED_BYTES:
        # Every round would copy all of it: one round, and half the memory so that two blocks of a
        # multiprocessor take turns to copy and to compute.
        return Plan(1, MOST_WARPS, SHARED_BYTES // 2 // tile, MOST_WARPS)
    if strips == 1:
        tiles = min(tiles, 8)  # nothing is used twice: rather more blocks at a time
    # About four strips to a block, of several heads where sequences are short, unless a second
    # block would not fit beside it.
    block_heads = max(1, min(heads, 4 // usual, SHARED_BYTES // (2 * tiles * tile)))
    # About twelve warps to a multiprocessor, which is what registers allow.
    beside = max(1, SHARED_BYTES // (block_heads * tiles * tile))
    rounds = _ceil(block_heads * usual, min(MOST_WARPS, max(4, 12 // beside)))
    warps = _ceil(block_heads * usual, rounds)
    # Few long sequences: several blocks share one.
    blocks = max(1, batch * _ceil(heads, block_heads))
    sharing = max(1, min(_ceil(strips, warps), 2 * multiprocessors // blocks))
    return Plan(block_heads, warps, tiles, _ceil(strips, sharing))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


# What a sequence costs on paper. A product is D multiplications and additions: of a query with a
# key, or as many of another of the formula's matrix products. Forward needs two of these for a
# query and a key that it sees, backward five.


class Cost(NamedTuple):
    """Of one head: the products that the formula needs, those that tensor cores compute, and the
    bytes that are read of shared memory for them.
    """

    needed: int
    computed: int
    shared_bytes: int

    def plus(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def waste(self) -> float:
        """Computed over needed."""
        return self.computed / self.needed

    def utilisation(self, width: int) -> float:
        """Of an A100's tensor cores, at most: in a clock a multiprocessor multiplies 1024 pairs of
        numbers and reads 128 bytes of shared memory.
        """
        clocks = max(self.computed * width / 1024, self.shared_bytes / 128)
        return self.needed * width / 1024 / clocks


def cost(step: str, width: int, queries: int, keys: int, causal: bool = False) -> Cost:
    """Of one pass over one sequence with these kernels."""
    of_keys, strip = step == "bwd_kv", strip_rows(step, width)
    own, pairs, reads = keys if of_keys else queries, 0, 0
    for row in range(0, own, strip):
        if of_keys:
            first = max(0, row + queries - keys) if causal else 0
            met = max(0, _ceil(queries, ROWS) - first // ROWS)
        else:
            met = _ceil(_seen(min(row + strip, own) - 1, queries, keys, causal), ROWS)
        pairs += met * ROWS * min(strip, ROWS * _ceil(own - row, ROWS))
        reads += met * ROWS * width * 2
    # bwd_q computes two products that bwd_kv computes too, and bwd_kv one twice at width 128.
    products = {"fwd": 2, "bwd_q": 3, "bwd_kv": 4 if width < 128 else 5}[step]
    new = {"fwd": 2, "bwd_q": 1, "bwd_kv": 4}[step]
    return Cost(new * _pairs(queries, keys, causal), products * pairs, products * reads)


def flash_attention_2(step: str, width: int, queries: int, keys: int, causal: bool = False) -> Cost:
    """The same with tiles of 128 × 128 (128 × 64 where the width is above 64), 32 rows to a warp,
    and a backward of five products: FlashAttention-2, idealised.
    """
    columns, pairs = 128 if width <= 64 else 64, 0
    for row in range(0, queries, 128):
        seen = _seen(min(row + 128, queries) - 1, queries, keys, causal)
        pairs += 128 * columns * _ceil(seen, columns)
    products = 2 if step == "fwd" else 5
    reads = products * pairs // 32 * width * 2
    return Cost(products * _pairs(queries, keys, causal), products * pairs, reads)


def table() -> str:
    """Both at the lengths of images and captions, width 64; of packs the mean sequence."""
    shapes = [(f"{n}", [n], False) for n in (50, 77, 197, 257, 577)]
    shapes += [("77 causal", [77], True), ("5-30 causal", list(range(5, 31)), True)]
    lines = ["length       pass  waste  FA-2   KiB read   FA-2  utilisation  FA-2"]
    for name, lengths, causal in shapes:
        for step, steps in (("fwd", ("fwd",)), ("bwd", ("bwd_q", "bwd_kv"))):
            ours = theirs = Cost(0, 0, 0)
            for n in lengths:
                for part in steps:
                    ours = ours.plus(cost(part, 64, n, n, causal))
                theirs = theirs.plus(flash_attention_2(step, 64, n, n, causal))
            lines.append(
                f"{name:11}  {step:4} {ours.waste:6.2f} {theirs.waste:5.2f}"
                f" {ours.shared_bytes / 1024 / len(lengths):10.0f}"
                f" {theirs.shared_bytes / 1024 / len(lengths):6.0f}"
                f" {ours.utilisation(64):12.0%} {theirs.utilisation(64):5.0%}"
            )
    return "\n".join(lines)


def _pairs(queries: int, keys: int, causal: bool) -> int:
    return sum(_seen(i, queries, keys, causal) for i in range(queries))


def _seen(query: int, queries: int, keys: int, causal: bool) -> int:
    return max(0, min(keys, query + keys - queries + 1)) if causal else keys
