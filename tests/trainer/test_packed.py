"""Rows laid end to end: each part against what it stands for, values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from tests.models import LINEAR
from trainer.packed.head import head_loss
from trainer.packed.layout import collate_flat, largest_pass, lay_out, split_rows
from trainer.packed.lora import lora_linear, use_fused_lora
from trainer.padding_free import wants_padding_free
from trainer.recipe_file import load_recipe
from trainer.varlen import masked


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=40),
    st.integers(100, 400),
)
def test_passes_hold_every_row_once_in_order_and_within_the_bound(
    lengths: list[int], most: int
) -> None:
    passes = split_rows(lengths, most)
    assert [row for first, last in passes for row in range(first, last)] == list(
        range(len(lengths))
    )
    for first, last in passes:
        assert last - first == 1 or sum(lengths[first:last]) <= most


@given(st.lists(st.integers(1, 200), min_size=12, max_size=48), st.integers(1, 3))
def test_no_process_meets_a_pass_over_its_largest(lengths: list[int], processes: int) -> None:
    rows = 4
    lengths = lengths[: len(lengths) // (rows * processes) * rows * processes]
    met: list[set[int]] = [set() for _ in range(processes)]
    for step in range(0, len(lengths), rows * processes):
        for process in range(processes):
            part = lengths[step + process * rows :][:rows]
            met[process] |= {sum(part[a:b]) for a, b in split_rows(part, 300)}
    for process in range(processes):
        largest = largest_pass(lengths, rows, 300, process, processes)
        assert largest == max(met[process], default=0)


def test_a_pass_knows_its_rows_and_predicts_nothing_across_them() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": [8, 9], "labels": [8, 9]},
    ]
    batch = collate_flat(rows)
    one = lay_out(
        batch["input_ids"][0], batch["labels"][0], batch["lengths"].tolist(), tokens=8, segments=4
    )
    assert one.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert one.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    # The label of a row's first token is what would be predicted from the row before it.
    assert one.targets.tolist() == [[6, 7, -100, 9, -100, -100, -100, -100]]
    assert one.boundaries.tolist() == [0, 3, 5, 8, 8]


def test_attention_by_the_mask_is_that_of_each_row_alone() -> None:
    torch.manual_seed(1)
    lengths = [4, 1, 7]
    query, key, value = torch.randn(12, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    boundaries = torch.tensor([0, 4, 5, 12, 12], dtype=torch.int32)
    together = masked(query, key, value, boundaries, 7, 0.3)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = functional.scaled_dot_product_attention(
            *(tensor[part].transpose(0, 1)[None] for tensor in (query, key, value)),
            is_causal=True,
            scale=0.3,
            enable_gqa=True,
        )
        torch.testing.assert_close(together[part], alone[0].transpose(0, 1))
        start += length


def test_the_head_loss_is_the_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.packed.head.CHUNK_TOKENS", 5)
    torch.manual_seed(2)
    hidden = torch.randn(13, 6, requires_grad=True)
    weight, targets = torch.randn(11, 6), torch.randint(0, 11, (13,))
    targets[[0, 4, 12]] = -100
    expected = functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(3 * expected, hidden)
    loss = head_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, hidden)[0], gradient)


def test_the_lora_step_has_the_gradients_of_the_plain_formula() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 6, dtype=torch.float64)
    down = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    up = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *tensors: lora_linear(tensors[0], weight, tensors[1], tensors[2], 0.7),
        (x, down, up),
    )
    plain = x @ weight.t() + 0.7 * (x @ down.t()) @ up.t()
    torch.testing.assert_close(lora_linear(x, weight, down, up, 0.7), plain)


def test_only_plain_lora_layers_are_fused(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for changes, fused in (({}, 2 * 7), ({"lora_dropout": 0.1}, 0), ({"use_dora": True}, 0)):
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model),
            LoraConfig(r=4, target_modules=LINEAR, task_type="CAUSAL_LM", **changes),
        )
        assert use_fused_lora(model) == fused


def test_where_rows_cannot_go_end_to_end_they_are_padded_or_it_is_refused() -> None:
    from trainer.errors import ConfigError
    from trainer.machine import Machine

    card = Machine("cuda", "Tesla T4", (7, 5))
    recommended = load_recipe("llama-3.2-3b-recommended")
    assert recommended.training.padding_free == "auto"
    assert not wants_padding_free(recommended, card)
    assert not wants_padding_free(recommended, Machine("cpu", "CPU"))
    always = load_recipe("llama-3.2-3b-recommended", ["training.padding_free=always"])
    with pytest.raises(ConfigError, match=r"Tesla T4 has compute capability 7\.5"):
        wants_padding_free(always, card)
