"""The network's shape, from the configurations that transformers writes."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import ModelLoadError
from server.model.config import read_config
from tests.families import FAMILIES, SIZES


def fields_of(name: str, **overrides: Any) -> dict[str, Any]:
    from transformers import AutoConfig

    family, settings = FAMILIES[name]
    fields: dict[str, Any] = AutoConfig.for_model(
        family, **(SIZES | settings | overrides)
    ).to_dict()
    return fields


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_silent_configuration_means_what_it_means_in_transformers(family: str) -> None:
    from transformers import AutoConfig

    told = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    theirs = AutoConfig.for_model(family)
    fields = {"model_type": family, "num_attention_heads": theirs.num_attention_heads}
    ours = read_config(fields | {name: getattr(theirs, name) for name in told})
    assert ours == read_config(theirs.to_dict())
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    window = getattr(theirs, "sliding_window", None)
    assert ours.max_positions == min(theirs.max_position_embeddings, window or 2**31)


def test_what_each_family_adds() -> None:
    def flags(name: str) -> tuple[bool, bool, bool]:
        config = read_config(fields_of(name))
        return config.qkv_bias, config.qk_norm, config.tied

    assert flags("llama-2") == (False, False, False)
    assert flags("mistral") == (False, False, False)
    assert flags("qwen2") == (True, False, True)
    assert flags("qwen3") == (False, True, True)


def test_the_context_of_a_model_with_a_window_ends_where_the_window_begins_to_matter() -> None:
    assert read_config(fields_of("mistral")).max_positions == 64
    assert read_config(fields_of("mistral", sliding_window=None)).max_positions == 512


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama-2", {"model_type": "gemma3"}, "'gemma3' are not served; .*llama, mistral, qwen2"),
        ("llama-2", {"model_type": None}, "None are not served"),
        ("llama-2", {"model_type": ["llama"]}, "not served"),
        ("llama-2", {"architectures": ["LlamaForSequenceClassification"]}, "not a chat model"),
        ("llama-2", {"attention_bias": True}, "attention_bias=True"),
        ("llama-2", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama-2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama-2", {"quantization_config": {"bits": 4}}, "quantised"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "type sliding_attention",
        ),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("llama-2", {"num_attention_heads": 3, "head_dim": 16}, "cannot share"),
        ("llama-2", {"head_dim": 15}, "odd"),
        ("llama-2", {"hidden_size": "48"}, "hidden_size='48'"),
        ("llama-2", {"hidden_size": True}, "hidden_size=True"),
        ("llama-2", {"vocab_size": 0}, "vocab_size=0"),
        ("llama-2", {"rms_norm_eps": None}, "rms_norm_eps"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    name: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        read_config(fields_of(name) | changes)


def test_a_damaged_number_of_layers_is_refused_before_anything_is_made_for_each() -> None:
    with pytest.raises(ModelLoadError, match="num_hidden_layers"):
        read_config(fields_of("llama-2", num_hidden_layers=2**30))
