"""Rows laid end to end without padding: how many go into one forward pass, and what the model is told of them.

Tensors on whatever device they are given; it knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.template import IGNORED


@dataclass(frozen=True, slots=True)
class Pass:
    """The inputs of one forward pass over `tokens` places.

    input_ids, position_ids, targets: (1, tokens). Position t of targets is the token that follows t in its row, or
    IGNORED. boundaries: (segments + 1,) int32, where each row begins; the places after the last row are a segment
    without targets, and the segments after that are empty.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    boundaries: Tensor

    @property
    def tokens(self) -> int:
        """Places of the pass, those without a row counted."""
        return self.input_ids.shape[1]


def collate_flat(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows end to end: input_ids, labels and attention_mask (1, sum of lengths), and lengths (rows,)."""
    input_ids = torch.tensor([token for row in rows for token in row["input_ids"]])
    labels = torch.tensor([label for row in rows for label in row["labels"]])
    return {
        "input_ids": input_ids.unsqueeze(0),
        "labels": labels.unsqueeze(0),
        # Only counted: the tokens seen are its sum.
        "attention_mask": torch.ones_like(input_ids).unsqueeze(0),
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
    }


def split_rows(lengths: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Consecutive rows (first, after the last) for passes of at most `max_tokens`, as even as their order allows.

    A row longer than that gets a pass of its own.
    """
    # As many passes as greedy filling needs, but filled evenly: their activations then peak lower.
    needed, filled = 0, max_tokens + 1
    for length in lengths:
        if filled + length > max_tokens:
            needed, filled = needed + 1, 0
        filled += length
    target = -(-sum(lengths) // max(needed, 1))
    passes: list[tuple[int, int]] = []
    first, filled = 0, 0
    for index, length in enumerate(lengths):
        over = filled + length - target
        wanted = len(passes) < needed - 1 and over > target - filled
        if index > first and (filled + length > max_tokens or wanted):
            passes.append((first, index))
            first, filled = index, 0
        filled += length
    passes.append((first, len(lengths)))
    return passes


def largest_pass(
    lengths: Sequence[int], rows: int, max_tokens: int, process: int = 0, processes: int = 1
) -> int:
    """Tokens of the largest pass that `process` (of `processes`) meets in a run over rows of `lengths`, in their order.

    rows: of a process per step. The processes take turns at `rows` rows each, as the library deals them out.
    """
    largest = 0
    for start in range(process * rows, len(lengths), processes * rows):
        step = lengths[start : start + rows]
        for first, last in split_rows(step, max_tokens):
            largest = max(largest, sum(step[first:last]))
    return largest


def lay_out(
    input_ids: Tensor, labels: Tensor, lengths: Sequence[int], tokens: int, segments: int
) -> Pass:
    """A pass of `tokens` places over the rows that lie end to end in input_ids and labels, both (sum of lengths,).

    Its boundaries have `segments` + 1 entries, so that passes of similar size can have the same shape. tokens must be
    at least the sum of lengths, segments over the number of rows.
    """
    device, total = input_ids.device, sum(lengths)
    ends = torch.tensor(lengths).cumsum(0).tolist()
    boundaries = [0, *ends, *[tokens] * (segments - len(ends))]
    positions = torch.cat([torch.arange(length) for length in (*lengths, tokens - total)])
    # The first token of a row follows nothing, and the last place of a row predicts nothing.
    targets = torch.full((tokens,), IGNORED, device=device)
    targets[: total - 1] = labels[1:]
    targets[torch.tensor(ends, device=device) - 1] = IGNORED
    padded = torch.zeros(tokens, dtype=input_ids.dtype, device=device)
    padded[:total] = input_ids
    return Pass(
        padded.unsqueeze(0),
        positions.to(device).unsqueeze(0),
        targets.unsqueeze(0),
        torch.tensor(boundaries, dtype=torch.int32, device=device),
    )
