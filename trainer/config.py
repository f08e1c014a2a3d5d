"""The recipe: every setting of a training run, its type, its default and its meaning.

Models only. Reading files and `--set` is `recipe_file.py`; nothing here knows about torch.
All models are frozen and refuse unknown keys. Numbers are strict: a quoted "4" is an error, not a 4.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LLAMA_LINEAR_LAYERS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)

Text = Annotated[str, Field(strict=True, min_length=1)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
Role = Literal["system", "user", "assistant"]


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The base model and how it is loaded."""

    base: Text = Field(description="Hub id or local folder of the base model.")
    base_id: Text | None = Field(
        default=None,
        description="Name of the float base the published adapter carries; null: the same as `base`. "
        "Needed where `base` is a folder or a 4-bit repository.",
    )
    revision: Text | None = Field(
        default=None, description="Hub commit, tag or branch of the base; null: its newest."
    )
    max_seq_length: Count = Field(
        default=2048, description="Longest training row in tokens; see data.long_rows."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="Compute type. auto: bfloat16 on a GPU of compute capability 8.0 or more, float16 on "
        "an older one, float32 on a CPU.",
    )
    load_in_4bit: Flag = Field(
        default=False, description="Load the base in 4 bits (QLoRA). Needs a CUDA GPU."
    )


class LoraConfig(Section):
    """The adapter."""

    r: Count = Field(default=16, description="Rank of the update matrices.")
    alpha: Annotated[float, Field(strict=True, gt=0)] = Field(
        default=16, description="Scale of the update: alpha / r, or alpha / sqrt(r) with rslora."
    )
    dropout: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.0, description="Dropout on the adapter's input."
    )
    rslora: Flag = Field(default=False, description="Rank-stabilised scale, alpha / sqrt(r).")
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        default=LLAMA_LINEAR_LAYERS, description="Linear layers that get an adapter."
    )


class SourceConfig(Section):
    """One source of training conversations."""

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="Short name used in counts, losses and the report. `all` is taken."
    )
    kind: Literal["sharegpt", "instruction"] = Field(
        description="sharegpt: `conversations` of from/value turns (or `messages` of role/content). "
        "instruction: `instruction`, optional `input` and `system`, and `output`."
    )
    location: Text = Field(
        description="Hub data-set id, or a local .jsonl, .json or .parquet file."
    )
    revision: Text | None = Field(
        default=None, description="Hub commit of the data set; null: its newest."
    )
    split: Text = Field(default="train", description="Split of a hub data set; not used for files.")
    samples: Count | None = Field(
        default=None, description="Rows chosen at random with data.seed; null: all rows."
    )
    repeat: Count = Field(
        default=1,
        description="Times each training row is in one epoch, so that a small source counts for more. Held-out rows "
        "are never repeated.",
    )
    licence: Text | None = Field(
        default=None, description="Licence of the data, for the report and the model card."
    )
    roles: dict[str, Role] = Field(
        default_factory=dict,
        description="More role names of a sharegpt source and what they mean, such as {tool: user}.",
    )

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name == "all":
            raise ValueError("a source cannot be named `all`; that is the sum of the sources")
        return self


class DataConfig(Section):
    """What is learned from, and what is held out."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = Field(
        description="The sources, in order; of two near-duplicates the earlier is kept."
    )
    seed: Index = Field(
        default=3407, description="Seed of the choice of rows, the split and the curve subset."
    )
    test_fraction: Annotated[float, Field(strict=True, gt=0, lt=1)] = Field(
        default=0.05, description="Share of each source's rows that is held out."
    )
    near_duplicate_threshold: Annotated[float, Field(strict=True, ge=0.5, le=1)] = Field(
        default=0.8,
        description="Jaccard similarity of word triples from which two texts count as the same: such rows "
        "are removed, and rows with such prompts stay on one side of the split.",
    )
    long_rows: Literal["drop", "truncate"] = Field(
        default="drop",
        description="Rows over model.max_seq_length. drop: left out. truncate: cut after the last answer "
        "that fits whole, left out if none does. Both are counted.",
    )

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources have the same name")
        return self


class TemplateConfig(Section):
    """How a conversation becomes text."""

    name: Text = Field(
        default="base",
        description="base: the base tokenizer's own template. Else a template shipped in "
        "trainer/templates, such as llama-3.1. It is saved with the adapter, frozen.",
    )


class TrainingConfig(Section):
    """The optimisation."""

    backend: Literal["auto", "unsloth", "peft"] = Field(
        default="auto",
        description="unsloth: CUDA only. peft: transformers + TRL + PEFT on any device. auto: unsloth "
        "where there is a CUDA GPU and it is installed, else peft.",
    )
    per_device_train_batch_size: Count = Field(default=4, description="Rows per forward pass.")
    gradient_accumulation_steps: Count = Field(default=4, description="Forward passes per step.")
    padding_free: Literal["never", "auto", "always"] = Field(
        default="never",
        description="Lay the rows of a step end to end in as few forward passes as max_pass_tokens allows, instead of "
        "padding them batch by batch. The loss is the same. auto: on a GPU whose variable-length attention passes a "
        "check, with the peft backend; elsewhere rows are padded, and the run says so. always: refused there, but for "
        "a CPU, which computes it by a mask.",
    )
    max_pass_tokens: Count = Field(
        default=8192,
        description="Most tokens of a forward pass with padding_free: bounds the memory.",
    )
    cuda_graphs: Flag = Field(
        default=True,
        description="Replay each shape of a padding-free pass as one CUDA graph (bfloat16, no dropout): without, the "
        "processor is the bottleneck.",
    )
    max_steps: Count = Field(default=40, description="Optimiser steps of the run.")
    learning_rate: Annotated[float, Field(strict=True, gt=0)] = Field(
        default=2e-4, description="Peak learning rate."
    )
    warmup_steps: Index = Field(
        default=5, description="Steps over which the learning rate rises from 0 to its peak."
    )
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field(
        default="linear", description="Course of the learning rate after the warm-up."
    )
    optim: Literal["adamw_8bit", "adamw_torch", "adamw_torch_fused"] = Field(
        default="adamw_torch",
        description="adamw_8bit: optimiser states in 8 bits (bitsandbytes); needs a CUDA GPU. adamw_torch_fused: all "
        "tensors in one launch.",
    )
    weight_decay: Annotated[float, Field(strict=True, ge=0)] = Field(
        default=0.01, description="Decay of the adapter's weights."
    )
    max_grad_norm: Annotated[float, Field(strict=True, gt=0)] = Field(
        default=1.0, description="Gradients are scaled down to this norm."
    )
    gradient_checkpointing: Flag = Field(
        default=True,
        description="Recompute activations in the backward pass: less memory, more time.",
    )
    logging_steps: Count = Field(
        default=10, description="Steps between two logged training losses."
    )
    save_steps: Count = Field(
        default=20,
        description="Steps between two checkpoints; the last two are kept, and removed when the run is complete.",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="The adapter that is published: after the last step, or where the validation curve was lowest.",
    )
    early_stopping_patience: Count | None = Field(
        default=None,
        description="Evaluations without a new lowest validation loss after which the run ends; null: it never does.",
    )
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        default=(),
        description="Experiment trackers to log to; each needs its package, and all but tensorboard a service.",
    )
    seed: Index = Field(
        default=3407, description="Seed of the adapter's start and the order of the rows."
    )


class EvaluationConfig(Section):
    """The held-out losses."""

    eval_steps: Count = Field(
        default=10,
        description="Steps between two evaluations on the curve subset; also at step 0 and the end.",
    )
    curve_rows: Count = Field(
        default=64,
        description="Held-out rows in the curve subset, spread over the sources. All held-out rows "
        "are evaluated at the end, base against tuned.",
    )
    batch_size: Count = Field(default=4, description="Rows per forward pass of an evaluation.")
    float_base_rows: Index = Field(
        default=0,
        description="Held-out rows that are evaluated on the float32 base too, the one the adapter is served on, where "
        "it was trained on a 4-bit one. Needs the float weights and 13 GB for a 3B model; 0: none.",
    )


class AnswersConfig(Section):
    """The table of base against tuned answers."""

    prompts: tuple[Text, ...] = Field(
        default=(
            "Explain in two sentences why the sky is blue.",
            "Write a Python function that returns the n-th Fibonacci number.",
            "Give me three tips for a good night's sleep.",
            "Translate to French: Where is the railway station?",
            "What should I check first when my computer does not start?",
        ),
        description="Questions that base and tuned model answer greedily after the run.",
    )
    max_new_tokens: Count = Field(default=128, description="Longest answer in tokens.")


class Recipe(Section):
    """A whole run."""

    description: Text = Field(description="One line about the recipe, shown by `recipes`.")
    model: ModelConfig = Field(description="The base model.")
    lora: LoraConfig = Field(default=LoraConfig(), description="The adapter.")
    template: TemplateConfig = Field(default=TemplateConfig(), description="The chat template.")
    data: DataConfig = Field(description="The data.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="The optimisation.")
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="The held-out losses."
    )
    answers: AnswersConfig = Field(default=AnswersConfig(), description="The table of answers.")

    @property
    def base_id(self) -> str:
        """The id of the float base the adapter belongs to."""
        return self.model.base_id or self.model.base

    def cuda_needs(self) -> tuple[str, ...]:
        """The settings that only a CUDA GPU can honour, as `key: value`; empty if any machine will do."""
        needs = []
        if self.model.load_in_4bit:
            needs.append("model.load_in_4bit: true")
        if self.model.dtype == "float16":
            needs.append("model.dtype: float16")
        if self.training.optim == "adamw_8bit":
            needs.append("training.optim: adamw_8bit")
        if self.training.backend == "unsloth":
            needs.append("training.backend: unsloth")
        return tuple(needs)

    def advice(self) -> tuple[str, ...]:
        """Warnings about settings that are legal and probably not meant, each naming its key."""
        training, warnings = self.training, []
        if training.warmup_steps >= training.max_steps:
            reached = training.learning_rate * (training.max_steps - 1) / training.warmup_steps
            warnings.append(
                f"training.warmup_steps ({training.warmup_steps}) is not shorter than training.max_steps "
                f"({training.max_steps}): the learning rate never reaches its peak of "
                f"{training.learning_rate:g}; the last step runs at {reached:.3g}."
            )
        elif training.warmup_steps > training.max_steps / 5:
            warnings.append(
                f"training.warmup_steps ({training.warmup_steps}) takes more than a fifth of "
                f"training.max_steps ({training.max_steps})."
            )
        if self.evaluation.eval_steps > training.max_steps:
            warnings.append(
                f"evaluation.eval_steps ({self.evaluation.eval_steps}) is longer than the run of "
                f"{training.max_steps} steps: the validation curve has its two ends only."
            )
        return tuple(warnings)
