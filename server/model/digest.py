"""The weights digest of docs/contracts.md: names the float32 values of a base, whatever file they came from."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from server.model.checkpoint import Checkpoint
from server.model.safetensors_file import Values, bfloat16_to_float32

PIECE = 2**20  # values: expanded from bfloat16 they fit a core's cache


def weights_digest(checkpoint: Checkpoint, threads: int = 2) -> str:
    """`sha256:` and 64 hex digits. Every tensor is read once; hashing lets go of the interpreter lock."""
    names = checkpoint.names

    def hash_one(name: str) -> bytes:
        return values_digest(checkpoint.read(name))

    # The largest first: it would otherwise be alone at the end.
    order = sorted(names, key=lambda name: -int(np.prod(checkpoint.shape(name))))
    with ThreadPoolExecutor(threads) as pool:
        values = dict(zip(order, pool.map(hash_one, order), strict=True))
    digest = hashlib.sha256()
    for name in names:
        shape = "x".join(map(str, checkpoint.shape(name)))
        digest.update(name.encode() + b"\0" + shape.encode() + b"\0" + values[name])
    return f"sha256:{digest.hexdigest()}"


def values_digest(values: Values) -> bytes:
    """SHA-256 of the float32 values, row-major. uint16 holds the bits of bfloat16."""
    if values.dtype != np.uint16:
        return hashlib.sha256(np.ascontiguousarray(values).data).digest()
    digest = hashlib.sha256()
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        digest.update(bfloat16_to_float32(flat[start : start + PIECE]).data)
    return digest.digest()
