"""The order in which a run sees its rows: fixed before it starts, the same for any number of processes.

The library's own sampler fills up or cuts the last step of an epoch, differently for each number of processes.
"""

from __future__ import annotations

import torch


def row_order(rows: int, wanted: int, seed: int) -> list[int]:
    """`wanted` row numbers: one random order of all `rows` after another, without a break between them."""
    order: list[int] = []
    generator = torch.Generator()
    for epoch in range(-(-wanted // rows)):
        # As the library shuffles its first epoch, so that runs of earlier versions can be repeated.
        generator.manual_seed(seed + epoch)
        order += torch.randperm(rows, generator=generator).tolist()
    return order[:wanted]
