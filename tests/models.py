"""Writes tiny models and adapters with the real libraries (transformers, PEFT), for tests to read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def byte_tokenizer() -> Any:
    """One token per byte, so that every character beyond ASCII is split. 0..2 are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def write_tiny_model(folder: Path, **overrides: Any) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        # Wide enough that logits differ by more than rounding, so that greedy choices are decided.
        "initializer_range": 0.2,
    }
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**settings | overrides))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_peft_adapter(base: Path, folder: Path, *, seed: int = 1, **settings: Any) -> None:
    """A LoRA adapter whose B matrices are not zero, saved by PEFT itself."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options | settings))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    peft.save_pretrained(folder, save_embedding_layers=False)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def write_manifest(
    folder: Path, *, weights_digest: str | None, base_id: str = "tiny-model", **changes: Any
) -> None:
    """manifest.json for a version folder, by the contract and independent of the trainer's code."""
    files = {
        p.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
            "bytes": p.stat().st_size,
        }
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }
    manifest = {
        "format": "lorachat-adapter/1",
        "name": folder.parent.name,
        "version": folder.name,
        "created": "2026-11-23T08:16:42Z",
        "base": {
            "id": base_id,
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "weights_digest": weights_digest,
            "trained_on": {"id": base_id, "revision": None, "quantization": None},
        },
        "chat_template": {
            "file": "chat_template.jinja",
            "sha256": files["chat_template.jinja"]["sha256"],
        },
        "stop_token_ids": [0, 2],
        "adapter": {},
        "files": files,
        "recipe": {},
        "metrics": {},
        "versions": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
