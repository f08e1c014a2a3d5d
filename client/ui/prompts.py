"""Which fixed prompts a batch asks: those of the training report where the volume has them."""

from collections.abc import Sequence

from client.volume import Version

# The trainer's own defaults, for a client that cannot see the volume.
DEFAULT = (
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Give me three tips for a good night's sleep.",
    "Translate to French: Where is the railway station?",
    "What should I check first when my computer does not start?",
)


def prompt_set(versions: Sequence[Version], model: str) -> tuple[str, tuple[str, ...]]:
    """Where the prompts come from, in words, and the prompts, for a served model's name."""
    for version in versions:
        if version.prompts and (
            model == version.id or (model == version.name and version.is_latest)
        ):
            return f"the training report of {version.id}", version.prompts
    return "the trainer's defaults", DEFAULT
