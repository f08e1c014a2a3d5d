"""`plan`: what a recipe will do and cost, before a GPU is rented. Reads tokenizer, configuration and data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import Recipe
from trainer.dataset import PreparedData
from trainer.errors import ConfigError
from trainer.estimate import OLD_CARDS, PEAKS, MemoryParts, Shape, memory, step_flops, step_seconds
from trainer.order import row_order
from trainer.progress import Reporter

LEARNING_RATES = (5e-5, 2e-3)  # between which adapters usually learn
EVALUATIONS_OF_ALL = 2  # base and tuned, at the end
# What a plan shows of MemoryParts: the words, the field.
MEMORY_PARTS = (
    ("weights", "weights"),
    ("adapter and gradients", "adapter"),
    ("optimiser", "optimiser"),
    ("activations kept", "kept"),
    ("one layer at work", "working"),
    ("peak of the training", "training"),
    ("evaluation, on top of the weights", "evaluation"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What came of it. seconds: by card, training and evaluation; tokens: real ones."""

    parameters: int
    adapter_parameters: int
    rows: int
    test_rows: int
    epoch_tokens: int
    step_rows: int
    step_tokens: float
    padding: float  # places per real token, where rows are padded
    epochs: float
    evaluation_share: float  # of the training's operations
    packed_memory: MemoryParts | None
    padded_memory: MemoryParts
    float_base_gb: float  # device memory of the comparison on the float32 base; 0: none
    disk_gb: float
    seconds: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]

    @property
    def ways(self) -> dict[str, MemoryParts]:
        """The memory by how rows come into a pass."""
        packed = {} if self.packed_memory is None else {"end to end": self.packed_memory}
        return packed | {"padded": self.padded_memory}

    @property
    def largest_gb(self) -> float:
        """The largest of the device memories that are shown."""
        return max(self.float_base_gb, *(way.peak for way in self.ways.values()))


def make_plan(recipe: Recipe, reporter: Reporter) -> Plan:
    """Raises ConfigError and DataError as a run would."""
    from transformers import AutoConfig  # noqa: PLC0415 (seconds to import)

    from trainer.prepare import prepare_data  # noqa: PLC0415

    try:
        config = AutoConfig.from_pretrained(recipe.model.base, revision=recipe.model.revision)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The base model's configuration could not be read from {recipe.model.base}: "
            f"{str(error).splitlines()[0]} Give a folder or a hub id within reach with --set model.base=…."
        ) from error
    _, data = prepare_data(recipe, reporter)
    return plan_of(recipe, config, data)


def plan_of(recipe: Recipe, config: Any, data: PreparedData) -> Plan:
    """The plan over data that is prepared."""
    shape, training, rows = Shape.of(config), recipe.training, data.epoch
    micro = training.per_device_train_batch_size
    step_rows = micro * training.gradient_accumulation_steps
    order = row_order(len(rows), training.max_steps * step_rows, training.seed)
    lengths = [rows[index].tokens for index in order]
    real = sum(lengths)
    batches = [lengths[start : start + micro] for start in range(0, len(lengths), micro)]
    padding = sum(max(batch) * len(batch) for batch in batches) / real
    mean_square = sum(length * length for length in lengths) / real
    flops = step_flops(shape, recipe, real, mean_square)
    evaluated = _evaluated_tokens(recipe, data)
    evaluation = step_flops(shape, recipe, evaluated, mean_square, forward_only=True)
    packed = training.padding_free != "never" and training.backend != "unsloth"
    padded = memory(recipe, shape, backend=_padded_backend(recipe), padding_free=False)
    parameters = shape.linear_parameters + shape.other_parameters
    adapter = shape.adapter_parameters(recipe)
    compares = recipe.model.load_in_4bit and recipe.evaluation.float_base_rows > 0
    return Plan(
        parameters=parameters,
        adapter_parameters=adapter,
        rows=len(rows),
        test_rows=len(data.test),
        epoch_tokens=sum(row.tokens for row in rows),
        step_rows=step_rows,
        step_tokens=real / training.max_steps,
        padding=padding,
        epochs=training.max_steps * step_rows / len(rows),
        evaluation_share=evaluation / flops,
        packed_memory=memory(recipe, shape, backend="peft", padding_free=True) if packed else None,
        padded_memory=padded,
        float_base_gb=parameters * 4 / 1e9 if compares else 0.0,
        disk_gb=_disk_gb(recipe, parameters, adapter, compares),
        seconds={
            card: (
                training.max_steps
                * step_seconds(
                    card,
                    flops / training.max_steps,
                    passes=training.gradient_accumulation_steps,
                    padding=padding,
                    packed=packed,
                ),
                step_seconds(card, evaluation, passes=0, padding=1.0, packed=False),
            )
            for card in PEAKS
        },
        warnings=(*recipe.advice(), *data.warnings, *_traps(recipe, data, evaluation / flops)),
    )


def _padded_backend(recipe: Recipe) -> str:
    return "unsloth" if recipe.training.backend in ("auto", "unsloth") else "peft"


def _evaluated_tokens(recipe: Recipe, data: PreparedData) -> float:
    evaluation, training = recipe.evaluation, recipe.training
    mean = sum(row.tokens for row in data.test) / len(data.test)
    curve = 2 + (training.max_steps - 1) // evaluation.eval_steps  # step 0, every so many, the last
    rows = curve * min(evaluation.curve_rows, len(data.test)) + EVALUATIONS_OF_ALL * len(data.test)
    return rows * mean


def _disk_gb(recipe: Recipe, parameters: int, adapter: int, compares: bool) -> float:
    """The base as it is fetched (in 4 bits, and in 16 bits where it is compared), two checkpoints, the adapter."""
    fetched = parameters * (0.72 if recipe.model.load_in_4bit else 2)
    if compares:
        fetched += parameters * 2
    states = adapter * (2 if recipe.training.optim == "adamw_8bit" else 8)
    return (fetched + 2 * (4 * adapter + states) + 3 * 4 * adapter) / 1e9


def _traps(recipe: Recipe, data: PreparedData, evaluation_share: float) -> list[str]:
    rate, warnings = recipe.training.learning_rate, []
    low, high = LEARNING_RATES
    if not low <= rate <= high:
        warnings.append(
            f"training.learning_rate ({rate:g}) is outside {low:g} to {high:g}, where adapters usually learn."
        )
    if evaluation_share > 1:
        warnings.append(
            f"The evaluations cost {evaluation_share:.1f} times the training. Lower evaluation.curve_rows, raise "
            "evaluation.eval_steps, or lower data.test_fraction."
        )
    warnings += [
        f"Source {count.name}: {count.truncated} of {count.kept} rows are cut at model.max_seq_length "
        f"({recipe.model.max_seq_length})."
        for count in data.counts
        if count.truncated > count.kept / 20
    ]
    return warnings


def old_card(card: str) -> bool:
    """Whether rows are padded on a card whatever the recipe says."""
    return card in OLD_CARDS
