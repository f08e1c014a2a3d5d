"""The rotary table against transformers' own rotary modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from server.errors import ModelLoadError
from server.model.config import read_config
from server.model.rope import rotary_table

POSITIONS = 16384
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def settings(head_dim: int, **fields: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 4 * head_dim,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
    } | fields


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 100000.0},
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        LLAMA3,
        LLAMA3 | {"factor": 8.0},
        YARN | {"rope_theta": 500000.0},
        YARN | {"rope_theta": 10000.0, "attention_factor": 0.9, "factor": 4},
        YARN | {"rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 0.8, "truncate": False},
        YARN | {"rope_theta": 10000.0, "beta_fast": 20, "beta_slow": 2, "factor": 1.0},
    ],
    ids=str,
)
def test_the_table_is_transformers_own(rope: dict[str, Any], head_dim: int) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(**settings(head_dim, rope_parameters=dict(rope)))
    theirs = LlamaRotaryEmbedding(config)
    cos, sin = theirs(torch.zeros(1), torch.arange(POSITIONS).unsqueeze(0))
    fields = config.to_dict()
    ours = rotary_table(fields, read_config(fields), POSITIONS)
    for table, expected in zip(ours, (cos, sin), strict=True):
        assert table.shape == (POSITIONS, head_dim // 2)
        assert table.dtype == np.float32
        half = expected[0, :, : head_dim // 2].numpy()
        assert np.abs(table - half).max() <= 1e-6, "and the second half repeats the first:"
        assert np.array_equal(half, expected[0, :, head_dim // 2 :].numpy())


def test_frequencies_are_transformers_within_their_last_bit() -> None:
    """Of some bases torch's power is off by that bit, and the table with it: by an angle of position * 1e-7."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for theta in (1e4, 1.3e5, 1e6, 5e6):
        for head_dim in (80, 96, 128, 256):
            config = LlamaConfig(
                **settings(head_dim, rope_parameters={"rope_type": "default", "rope_theta": theta})
            )
            theirs = LlamaRotaryEmbedding(config).inv_freq.numpy()
            fields = config.to_dict()
            cos, sin = rotary_table(fields, read_config(fields), 2)
            angle = np.arctan2(sin[1].astype(np.float64), cos[1].astype(np.float64))
            np.testing.assert_allclose(angle, theirs, rtol=3e-7)


def test_older_configurations_say_the_same_in_other_words() -> None:
    old = settings(
        64,
        rope_theta=500000.0,
        rope_scaling={k: v for k, v in LLAMA3.items() if k not in ("rope_theta", "rope_type")}
        | {"type": "llama3"},
    )
    new = settings(64, rope_parameters=LLAMA3)
    for a, b in zip(
        rotary_table(old, read_config(old), 64),
        rotary_table(new, read_config(new), 64),
        strict=True,
    ):
        assert np.array_equal(a, b)
    bare = settings(64)
    plain = settings(64, rope_theta=10000.0, rope_scaling=None)
    assert np.array_equal(
        rotary_table(bare, read_config(bare), 64)[0], rotary_table(plain, read_config(plain), 64)[0]
    )


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' is not served"),
        ({"rope_type": "longrope"}, "'longrope' is not served"),
        ({"rope_type": "linear"}, "factor=None"),
        ({"rope_type": "linear", "factor": 0}, "factor=0"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor"),
        (LLAMA3 | {"high_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (YARN | {"rope_theta": 1.0}, "over 1"),
        ({"full_attention": {"rope_type": "linear", "factor": 2.0}}, "differ between layers"),
        ([1], "rotary parameters are"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(rope: Any, reason: str) -> None:
    fields = settings(64, rope_parameters=rope)
    with pytest.raises(ModelLoadError, match=reason):
        rotary_table(fields, read_config(fields), 16)
