"""The model card names base, figures, data, licences and warnings, and tells how to serve the version."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml
from run_records import WARMUP_WARNING, run_record, source

from trainer.card import model_card
from trainer.manifest import AdapterFacts

ADAPTER = AdapterFacts(
    rank=16, alpha=32, rslora=False, target_modules=("q_proj",), parameters=24_313_856
)
VERSION = "20261123-081642-3fa9c1"


def card(*, has_report: bool = True, **changes: Any) -> str:
    text = model_card(
        run_record(**changes), version=VERSION, adapter=ADAPTER, has_report=has_report
    )
    return text.replace("\u202f", " ").replace("\xa0", " ")


def test_front_matter_is_what_the_hub_reads() -> None:
    _, front, _ = card().split("---\n", 2)

    assert yaml.safe_load(front) == {
        "base_model": "unsloth/Llama-3.2-3B-Instruct",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sft", "lorachat"],
    }


def test_it_says_what_the_version_is_and_how_well_it_did() -> None:
    text = card()

    assert "# smalltalk\n" in text
    assert "rank 16, alpha 32, 24 313 856 parameters" in text
    assert VERSION in text
    assert (
        "**Better than the base model: held-out loss 1.11 → 0.98 over 753 793 tokens, −12 %.**"
        in text
    )
    assert "| evol-instruct | 1.211 | 0.988 | 3.36 | 2.69 | 718 | 402 771 |" in text
    assert f"- {WARMUP_WARNING}\n" in text
    assert "| torch | 2.13.0 |" in text


def test_it_tells_how_to_serve_this_very_version() -> None:
    text = card()

    assert "python -m server --model unsloth/Llama-3.2-3B-Instruct --adapters adapters" in text
    assert f'"model": "smalltalk@{VERSION}"' in text


def test_licences_are_given_or_said_to_be_unknown() -> None:
    text = card(sources=(source("a", licence="MIT"), source("b", licence=None, revision=None)))

    assert "| a | example/a at 16b48bd6 | MIT | 13 726 | 722 | 3 911 027 |" in text
    assert "| b | example/b | not stated |" in text


def test_a_base_trained_in_four_bits_is_told_apart_from_the_float_base() -> None:
    base = run_record().base

    assert "trained on `unsloth/llama-3.2-3b-instruct-unsloth-bnb-4bit` (nf4)" in card()
    assert (
        "trained on"
        not in card(base=dataclasses.replace(base, quantization=None), sources=()).split("##")[0]
    )


def test_text_cannot_break_out_of_a_table_or_become_html() -> None:
    text = card(sources=(source("a|b\nc<script>"),))

    assert "| a\\|b c&lt;script> |" in text


def test_what_the_run_lacks_is_left_out() -> None:
    text = card(warnings=(), sources=(), losses=(), versions={}, has_report=False)

    assert "## Warnings" not in text
    assert "## Data" not in text
    assert "## Versions" not in text
    assert "report.html" not in text
    assert "was not measured" in text
