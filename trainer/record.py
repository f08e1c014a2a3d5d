"""What a finished run knows about itself: the facts that the report, the model card and the manifest are made from.

Plain data, standard library only. It knows nothing about how the facts were measured or how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """One data source: what was read, and where every row went (rows; tokens)."""

    name: str
    kind: str  # sharegpt | instruction | ...
    location: str
    revision: str | None
    licence: str | None
    fingerprint: str  # sha256 over the rows chosen, in order
    read: int
    chosen: int
    duplicates: int  # near-duplicates removed, across all sources
    no_trained_token: int
    too_long: int  # dropped or truncated, as the recipe says
    truncated: int
    kept: int
    train_rows: int
    test_rows: int
    train_tokens: int
    trained_tokens: int  # tokens of train rows that carry loss
    rejected: int = 0  # malformed (an empty turn, an answer first, ...) or holding the template's control tokens


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One logged step. Absent measurements are None."""

    step: int
    seconds: float  # since the first step began
    epoch: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None  # token-weighted, on the curve subset
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None  # real tokens, padding not counted
    memory_gb: float | None = (
        None  # of a step: reserved at its peak (CUDA), resident after it (CPU); GB = 1e9 bytes
    )
    allocated_gb: float | None = None  # of a step, CUDA: held by tensors at its peak


@dataclass(frozen=True, slots=True)
class SourceLoss:
    """Token-weighted mean negative log-likelihood (nats) over the held-out rows of one source, or of all ("all")."""

    source: str
    base: float
    tuned: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class FloatBaseLoss:
    """Held-out losses (nats) of the same rows on the quantised base trained on and on the float32 base served on."""

    source: str
    base_quantised: float
    base_float: float
    tuned_quantised: float
    tuned_float: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One fixed prompt answered greedily by base and tuned model. finish: "stop" or "length"."""

    prompt: str
    base: str
    tuned: str
    base_tokens: int
    tuned_tokens: int
    base_finish: str
    tuned_finish: str


@dataclass(frozen=True, slots=True)
class MaskedSample:
    """A training row as (text, is_trained) spans, in order."""

    source: str
    spans: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory. On CUDA: reserved by the allocator; on a CPU: resident set of the process. GB = 1e9 bytes."""

    device: str
    peak_reserved_gb: float
    start_reserved_gb: float  # before the first step: model and adapter
    total_gb: float

    @property
    def peak_share(self) -> float:
        return self.peak_reserved_gb / self.total_gb if self.total_gb else 0.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the plan says of this run beforehand. None: it has no figure for this machine. Times are for one card."""

    steps: int
    tokens: int  # real tokens of all steps
    card: str | None = None  # the card of the plan that this machine's is
    train_seconds: float | None = None
    evaluation_seconds: float | None = None
    step_gb: float | None = None  # held by tensors at the peak of a step; GB = 1e9 bytes
    peak_gb: float | None = None  # reserved, evaluations included


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The float base the adapter belongs to, and what it was really trained on."""

    id: str
    revision: str | None
    architecture: str
    weights_digest: str | None
    trained_on_id: str
    trained_on_revision: str | None
    quantization: str | None


@dataclass(frozen=True, slots=True)
class Probe:
    """PEFT's natural log-probabilities of token_ids[1:] on the float32 base; or, in `absent`, why there are none."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    absent: str | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything a reader of the run would ask."""

    name: str
    backend: str
    command: str
    started: str  # ISO 8601, UTC
    wall_seconds: float
    train_seconds: float
    steps: int
    epochs: float
    train_tokens_seen: int  # real tokens
    tokens_per_second: float
    final_train_loss: float
    base: BaseModel
    memory: Memory
    trainable_parameters: int
    total_parameters: int
    recipe: dict[str, Any]  # resolved by the trainer
    resolved_arguments: dict[str, Any]  # what the trainer class really ran with
    versions: dict[str, str]
    stop_token_ids: tuple[int, ...]
    sources: tuple[SourceCounts, ...]
    history: tuple[HistoryPoint, ...]
    losses: tuple[SourceLoss, ...]
    answers: tuple[Answer, ...]
    masked_samples: tuple[MaskedSample, ...]
    warnings: tuple[str, ...] = field(default=())
    float_losses: tuple[FloatBaseLoss, ...] = field(default=())
    probe: Probe = field(default=Probe(absent="the run computed none"))
    expected: Expectation | None = None
