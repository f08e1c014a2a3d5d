"""The settings beside the conversation, shared by all tabs."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from client.types import Sampling

DEFAULTS = Sampling()


@dataclass(frozen=True, slots=True)
class Controls:
    """The components, and how to read them."""

    system: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    max_tokens: gr.Slider

    @property
    def inputs(self) -> set[Any]:
        return {self.system, self.temperature, self.top_p, self.max_tokens}

    def system_prompt(self, values: dict[Any, Any]) -> str:
        """The text of the system prompt, empty if there is none."""
        return str(values[self.system] or "")

    def sampling(self, values: dict[Any, Any]) -> Sampling:
        """The sliders' values as the client wants them."""
        return Sampling(
            temperature=float(values[self.temperature]),
            top_p=float(values[self.top_p]),
            max_tokens=int(values[self.max_tokens]),
        )


def build_controls() -> Controls:
    """Draw the settings where the caller stands."""
    return Controls(
        system=gr.Textbox(
            label="System prompt",
            placeholder="None: the model's template decides",
            lines=3,
            max_lines=8,
            elem_id="system",
        ),
        temperature=gr.Slider(0, 2, DEFAULTS.temperature, step=0.05, label="Temperature"),
        top_p=gr.Slider(0, 1, DEFAULTS.top_p, step=0.01, label="Top-p"),
        max_tokens=gr.Slider(1, 4096, DEFAULTS.max_tokens, step=1, label="Max new tokens"),
    )
