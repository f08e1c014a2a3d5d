"""Which process of a run this is. Launchers (torchrun, accelerate) say so in environment variables.

Knows no recipe and no GPU.
"""

from __future__ import annotations

import os

from trainer.errors import ConfigError


def process_count() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """This process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of this machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and speaks."""
    return process_rank() == 0


def divide_step(rows: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """(rows per forward pass, passes per step) of each process, so that all together see `rows` rows a step.

    micro_batch: the largest pass wanted. Raises ConfigError if the rows cannot be shared out evenly.
    """
    share, rest = divmod(rows, processes)
    if rest or not share:
        raise ConfigError(
            f"A step of {rows} rows (training.per_device_train_batch_size × training.gradient_accumulation_steps) "
            f"cannot be shared evenly by {processes} processes; start a number of processes that divides it."
        )
    size = next(size for size in range(min(micro_batch, share), 0, -1) if share % size == 0)
    return size, share // size
