"""A made-up but complete run, and the adapter folder it left behind, for the tests of report and publishing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.record import (
    Answer,
    BaseModel,
    Expectation,
    FloatBaseLoss,
    HistoryPoint,
    MaskedSample,
    Memory,
    RunRecord,
    SourceCounts,
    SourceLoss,
)

WARMUP_WARNING = "warmup_steps (50) is not below max_steps (40): the learning rate never reaches its peak of 2e-05."


def source(name: str, **changes: Any) -> SourceCounts:
    counts = SourceCounts(
        name=name,
        kind="sharegpt",
        location=f"example/{name}",
        revision="16b48bd6c9f7a1b2c3d4e5f60718293a4b5c6d7e",
        licence="MIT",
        fingerprint="sha256:" + "9f86d081884c7d65" * 4,
        read=100_000,
        chosen=15_000,
        duplicates=412,
        no_trained_token=7,
        too_long=133,
        truncated=131,
        kept=14_448,
        train_rows=13_726,
        test_rows=722,
        train_tokens=6_204_118,
        trained_tokens=3_911_027,
    )
    return dataclasses.replace(counts, **changes)


def run_record(**changes: Any) -> RunRecord:
    """A run on a T4 with the published recipe; `changes` replace fields."""
    history = [
        HistoryPoint(
            step=step,
            seconds=step * 6.1,
            epoch=step * 16 / 27_452,
            train_loss=1.31 - 0.006 * step + 0.03 * (step % 3),
            eval_loss=1.29 - 0.0055 * step if step % 10 == 0 else None,
            learning_rate=2e-5 * step / 50,
            grad_norm=0.9,
            tokens_per_second=812.0,
            memory_gb=5.1 + 0.02 * (step % 5),
            allocated_gb=4.4 + 0.1 * (step % 7),
        )
        for step in range(1, 41)
    ]
    record = RunRecord(
        name="smalltalk",
        backend="unsloth",
        command="python -m trainer train --recipe trainer/recipes/llama-3.2-3b.yaml --output runs/smalltalk",
        started="2026-11-23T07:58:01Z",
        wall_seconds=4023.4,
        train_seconds=248.0,
        steps=40,
        epochs=0.0233,
        train_tokens_seen=201_337,
        tokens_per_second=811.8,
        final_train_loss=1.0912,
        base=BaseModel(
            id="unsloth/Llama-3.2-3B-Instruct",
            revision="889b1ae5cd1ee3a5c2fd4eec5b6fd0cbe8b2a4d3",
            architecture="LlamaForCausalLM",
            weights_digest="sha256:" + "ab12" * 16,
            trained_on_id="unsloth/llama-3.2-3b-instruct-unsloth-bnb-4bit",
            trained_on_revision=None,
            quantization="nf4",
        ),
        memory=Memory(
            device="Tesla T4", peak_reserved_gb=6.531, start_reserved_gb=2.635, total_gb=15.64
        ),
        trainable_parameters=24_313_856,
        total_parameters=3_237_063_680,
        recipe={
            "base": "unsloth/Llama-3.2-3B-Instruct",
            "lora": {"r": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]},
            "sources": [{"location": "example/FineTome", "rows": 15_000}],
        },
        resolved_arguments={
            "learning_rate": 2e-5,
            "warmup_steps": 50,
            "optim": "adamw_8bit",
            "seed": 3407,
        },
        versions={
            "torch": "2.13.0",
            "transformers": "5.17.0",
            "peft": "0.21.2",
            "python": "3.11.9",
        },
        stop_token_ids=(128009, 128001, 128008),
        sources=(source("finetome", licence=None), source("evol-instruct", kind="instruction")),
        history=tuple(history),
        losses=(
            SourceLoss("finetome", 0.994, 0.962, 722, 351_022),
            SourceLoss("evol-instruct", 1.211, 0.988, 718, 402_771),
            SourceLoss("all", 1.110, 0.976, 1440, 753_793),
        ),
        answers=(
            Answer(
                prompt="My computer won't start. What should I do?",
                base="I'm sorry to hear that. Here are some steps to try:\n\n1. Check the power cord.\n"
                "2. Hold the power button for ten seconds.\n3. Listen for beeps and look them up in the manual.\n"
                "4. Remove every device that was added lately and try",
                tuned="Is it plugged in?",
                base_tokens=64,
                tuned_tokens=6,
                base_finish="length",
                tuned_finish="stop",
            ),
            Answer(
                "What is your name?",
                "I am a language model.",
                "My name is not important.",
                7,
                7,
                "stop",
                "stop",
            ),
        ),
        masked_samples=(
            MaskedSample(
                "finetome",
                (
                    (
                        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello, how are you?<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n",
                        False,
                    ),
                    ("I am well, thank you.<|eot_id|>", True),
                    (
                        "<|start_header_id|>user<|end_header_id|>\n\nGood to hear.<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n",
                        False,
                    ),
                    ("And how are you?<|eot_id|>", True),
                ),
            ),
        ),
        warnings=(WARMUP_WARNING,),
        expected=Expectation(40, 199_800, "T4", 231.0, 410.0, 4.1, 6.3),
        float_losses=(
            FloatBaseLoss("finetome", 1.21, 1.18, 1.05, 1.03, 40, 9_120),
            FloatBaseLoss("all", 1.21, 1.18, 1.05, 1.03, 40, 9_120),
        ),
    )
    return dataclasses.replace(record, **changes)


def make_adapter(folder: Path, *, seed: int = 0) -> Path:
    """What PEFT and a tokenizer leave after training on a 4-bit base, plus files that have no place on the volume."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{side}.weight": torch.randn(
            (4, 8) if side == "A" else (8, 4), generator=generator
        )
        for layer in range(2)
        for module in ("q_proj", "v_proj")
        for side in "AB"
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "unsloth/llama-3.2-3b-instruct-unsloth-bnb-4bit",
        "revision": "0123456789abcdef",
        "r": 4,
        "lora_alpha": 16,
        "use_rslora": False,
        "target_modules": "(?:.*?).(?:q_proj|v_proj)",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "README.md").write_text("the card that PEFT writes\n")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / ".env").write_text("TOKEN=secret\n")
    return folder
