"""Splits rows into train and test so that groups stay whole and every source gives its share.

Pure functions of their arguments; it knows nothing about what a row is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence


def held_out(
    groups: Sequence[Hashable], sources: Sequence[str], fraction: float, seed: int
) -> set[int]:
    """The rows (by index) to hold out: whole groups, close to `fraction` of each source's rows, never more.

    groups, sources: one entry per row. A source of at least 1/fraction rows gives at least one row unless its
    groups are all larger than its share.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    wanted = {
        source: round(count * fraction) or int(count > 1)
        for source, count in Counter(sources).items()
    }
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    order = list(members)
    random.Random(f"{seed}:split").shuffle(order)
    for group in order:
        rows = members[group]
        cost = Counter(sources[row] for row in rows)
        if all(taken[source] + count <= wanted[source] for source, count in cost.items()):
            taken.update(cost)
            chosen.update(rows)
    return chosen


def spread(sources: Sequence[str], count: int, seed: int) -> list[int]:
    """At most `count` rows (by index, ascending), each source represented by its share."""
    order = list(range(len(sources)))
    random.Random(f"{seed}:curve").shuffle(order)
    queues: dict[str, list[int]] = {}
    for row in order:
        queues.setdefault(sources[row], []).append(row)
    total = len(sources)
    # Each row's place within its source, as a share of it: taking the smallest keeps the shares even.
    ranked = sorted(
        ((place + 0.5) / len(rows), source, row)
        for source, rows in queues.items()
        for place, row in enumerate(rows)
    )
    return sorted(row for _, _, row in ranked[: min(count, total)])
