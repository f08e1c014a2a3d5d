"""The trainer's errors, by whose hands can mend them.

    TrainerError
    |-- ConfigError     the recipe, the flags or this machine do not fit together   exit code 3
    |-- DataError       a data source is missing, unreadable or unusable            exit code 3
    |-- RetryableError  the machine gave out; a checkpoint is kept                  exit code 75
    |   |-- OutOfMemory     less memory than the recipe takes; --auto-batch mends it
    |   `-- DiskFull        no room for a checkpoint, the report or the version
    |-- Interrupted     SIGTERM; a checkpoint was saved                             exit code 143
    `-- TrainingError   the run itself went wrong (a loss that is not a number)     exit code 1

Every message is one sentence or two: what is wrong, and what to do about it.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of all errors this program raises on purpose."""

    exit_code = 1


class ConfigError(TrainerError):
    """The recipe, the flags or this machine do not fit together."""

    exit_code = 3


class DataError(TrainerError):
    """A data source is missing, unreadable or unusable."""

    exit_code = 3


class RetryableError(TrainerError):
    """The machine gave out; the same command goes on from the last checkpoint."""

    exit_code = 75  # EX_TEMPFAIL


class OutOfMemory(RetryableError):
    """Less memory than the recipe takes; --auto-batch mends it."""


class DiskFull(RetryableError):
    """No room left for a checkpoint, the report or the version; what was complete before still is."""


class Interrupted(TrainerError):
    """Told to stop by SIGTERM, with a checkpoint saved; the same command goes on from it."""

    exit_code = 143  # 128 + SIGTERM


class TrainingError(TrainerError):
    """The run itself went wrong."""
