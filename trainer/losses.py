"""Token-weighted losses: the sum of all tokens' losses over the number of tokens, whatever the batches.

(The trainer's own eval_loss is a mean over batches of means, which weights a token by the company it keeps.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.backends.base import Backend
from trainer.dataset import Row
from trainer.machine import DType
from trainer.record import SourceLoss
from trainer.template import IGNORED

# Positions of one forward pass, padding included: bounds the logits, (positions, vocabulary).
MAX_BATCH_POSITIONS = 2048
# Of these, as many as are in float32 at a time: 128,256 logits each are 0.13 GB, and the loss takes three times that.
FLOAT_POSITIONS = 256


@dataclass(frozen=True, slots=True)
class LossSum:
    """Losses (nats) summed over tokens."""

    total: float = 0.0
    tokens: int = 0
    rows: int = 0

    @property
    def mean(self) -> float:
        """Loss per token; not a number where there are no tokens."""
        return self.total / self.tokens if self.tokens else float("nan")

    def __add__(self, other: LossSum) -> LossSum:
        return LossSum(self.total + other.total, self.tokens + other.tokens, self.rows + other.rows)


def collate(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of input_ids and labels as right-padded tensors (batch, time), with an attention_mask.

    Labels are padded with IGNORED, never derived from the pad token: it may be the end-of-turn token.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        input_ids[index, :length] = torch.tensor(row["input_ids"])
        attention_mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row["labels"])
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


class LossMeter:
    """Measures a model's losses on rows."""

    def __init__(
        self, backend: Backend, model: Any, dtype: DType, pad_token_id: int, batch_size: int
    ) -> None:
        self._backend = backend
        self._model = model
        self._dtype = dtype
        self._pad_token_id = pad_token_id
        self._batch_size = batch_size

    def measure(self, rows: Sequence[Row]) -> dict[str, LossSum]:
        """Losses by source, without dropout and without gradients. The model's mode is left as it was."""
        was_training = self._model.training
        self._model.eval()
        sums: dict[str, LossSum] = {}
        try:
            with torch.no_grad(), self._autocast():
                for batch in self._batches(rows):
                    for row, total in zip(batch, self._batch_losses(batch), strict=True):
                        one = LossSum(total, row.encoded.trained_tokens, 1)
                        sums[row.source] = sums.get(row.source, LossSum()) + one
        finally:
            self._model.train(was_training)
        return sums

    def _batch_losses(self, rows: Sequence[Row]) -> list[float]:
        """Each row's loss, summed over its trained tokens."""
        batch = collate(
            [{"input_ids": row.encoded.input_ids, "labels": row.encoded.labels} for row in rows],
            self._pad_token_id,
        )
        device = next(self._model.parameters()).device
        labels = batch["labels"][:, 1:].to(
            device
        )  # (batch, time - 1): the token after each position
        positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
        logits = self._backend.logits(
            self._model,
            batch["input_ids"].to(device),
            batch["attention_mask"].to(device),
            positions,
        )
        sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
        at_once = max(FLOAT_POSITIONS // len(rows), 1)
        for first in range(0, len(positions), at_once):
            part = slice(first, first + at_once)
            losses = functional.cross_entropy(
                logits[:, part].float().transpose(1, 2),
                labels[:, positions[part]],
                ignore_index=IGNORED,
                reduction="none",
            )
            sums += losses.double().sum(dim=1)
        totals: list[float] = sums.tolist()
        return totals

    def _batches(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Rows of similar length, long ones first so that a lack of memory shows at once."""
        batch: list[Row] = []
        for row in sorted(rows, key=lambda row: -row.tokens):
            longest = batch[0].tokens if batch else row.tokens
            full = len(batch) == self._batch_size
            if batch and (full or (len(batch) + 1) * longest > MAX_BATCH_POSITIONS):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _autocast(self) -> AbstractContextManager[Any]:
        device = next(self._model.parameters()).device.type
        if self._dtype == "float32":
            return nullcontext()
        return torch.autocast(device, dtype=getattr(torch, self._dtype))


def compare(base: dict[str, LossSum], tuned: dict[str, LossSum]) -> tuple[SourceLoss, ...]:
    """The losses of each source in order of name, then those of all together as "all"."""
    pairs = [(name, base[name], tuned[name]) for name in sorted(tuned)]
    pairs.append(("all", total(base), total(tuned)))
    return tuple(
        SourceLoss(name, before.mean, after.mean, after.rows, after.tokens)
        for name, before, after in pairs
    )


def total(sums: dict[str, LossSum]) -> LossSum:
    """The sum over the sources."""
    return sum(sums.values(), LossSum())
