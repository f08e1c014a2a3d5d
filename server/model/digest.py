"""The weights digest of docs/contracts.md: names the float32 values of a base, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


def weights_digest(weights: Mapping[str, Tensor], threads: int = 2) -> str:
    """`sha256:` and 64 hex digits. weights: parameters by name, tied ones once."""
    names = sorted(weights)
    with ThreadPoolExecutor(threads) as pool:  # hashlib and torch release the interpreter lock
        values = pool.map(lambda name: _hash_values(weights[name]), names)
        digest = hashlib.sha256()
        for name, value in zip(names, values, strict=True):
            shape = "x".join(map(str, weights[name].shape))
            digest.update(name.encode() + b"\0" + shape.encode() + b"\0" + value)
    return f"sha256:{digest.hexdigest()}"


def _hash_values(tensor: Tensor) -> bytes:
    values = tensor.detach().to(torch.float32).contiguous()
    return hashlib.sha256(values.numpy().data).digest()
