"""How case files mark their cases: in which order a budget takes them, and what they cost."""

from __future__ import annotations

from typing import Any

# Families, and their folders, in the order of a run.
FAMILIES = ("ops", "feeding", "training", "evaluation")
# The first of each op, small and telling; what is worth its time; the large ones.
FIRST, MORE, LARGE = 0, 1, 2
WEIGHTS = {FIRST: 4.0, MORE: 1.5, LARGE: 1.0}


def case(
    *values: Any,
    id: str | None = None,
    tier: int = MORE,
    work: float | None = None,
    seconds: float = 0.0,
    weight: float | None = None,
    slow: bool = False,
) -> Any:
    """One parameter set of a case.

    Args:
        values: of the parameters.
        id: as it is shown.
        tier: FIRST, MORE or LARGE.
        work: what its rounds' time grows with, in a unit of the test's own: a larger case that
            cannot fit, by the time of a smaller one, is then not even begun.
        seconds: it takes at least about so many, of the processes that it starts.
        weight: its share of a budget; None is its tier's.
        slow: takes minutes; run by ``-m slow`` alone.
    """
    import pytest  # results are shown where it is not installed

    shares = {"seconds": seconds, "weight": WEIGHTS[tier] if weight is None else weight}
    marks = [pytest.mark.case(tier=tier, work=work, **shares)]
    if slow:
        marks.append(pytest.mark.slow)
    return pytest.param(*values, id=id, marks=marks)
