"""The trainer's errors, by whose hands can mend them.

    TrainerError
    |-- ConfigError     the recipe, the flags or this machine do not fit together   exit code 3
    |-- DataError       a data source is missing, unreadable or unusable            exit code 3
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


class TrainingError(TrainerError):
    """The run itself went wrong."""
