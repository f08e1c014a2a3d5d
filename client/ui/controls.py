"""The settings beside the conversation, shared by all pages.

Their values live in the browser: each change is told to the page's scripts, which keep them in the address.
"""

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from client.types import Sampling

DEFAULTS = Sampling()
# Nothing of the page is meant to be called as an API; without this each handler would be one.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
PRESETS: dict[str, dict[str, float]] = {
    "Balanced": {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "min_p": 0},
    "Exact (greedy)": {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0},
    "Focused": {"temperature": 0.3, "top_p": 0.9, "top_k": 0, "min_p": 0},
    "Creative": {"temperature": 1.1, "top_p": 1, "top_k": 0, "min_p": 0.05},
}


@dataclass(frozen=True, slots=True)
class Controls:
    """The components by the names that the scripts know them by, and the key apart from them."""

    named: dict[str, Any]
    preset: gr.Dropdown
    key: gr.Textbox

    def connect(self, page: gr.Blocks) -> None:
        """Tell the scripts of every change, and take from them what the address and the browser hold."""
        names, components = list(self.named), list(self.named.values())
        for name, component in self.named.items():
            outputs = self.preset if name in PRESETS["Balanced"] else None
            component.change(None, component, outputs, js=_call("settings.set", name), **PRIVATE)
        self.preset.input(
            None,
            [self.preset, *components],
            components,
            js=f"async (preset, ...values) => (await lorachat).settings.preset"
            f"(preset, {json.dumps(names)}, values)",
            **PRIVATE,
        )
        self.key.change(None, self.key, None, js=_call("settings.setKey"), **PRIVATE)
        page.load(
            None,
            components,
            [*components, self.key],
            js=f"async (...values) => (await lorachat).settings.restore"
            f"({json.dumps(names)}, values, {json.dumps(PRESETS)})",
            **PRIVATE,
        )


def build_controls() -> Controls:
    """Draw the settings where the caller stands."""
    preset = gr.Dropdown([*PRESETS, "Custom"], value="Balanced", label="Preset", elem_id="preset")
    named: dict[str, Any] = {
        "system": gr.Textbox(
            label="System prompt",
            placeholder="None: the model's template decides",
            lines=3,
            max_lines=8,
            elem_id="system",
        ),
        "temperature": gr.Slider(0, 2, DEFAULTS.temperature, step=0.05, label="Temperature"),
        "top_p": gr.Slider(0.01, 1, DEFAULTS.top_p, step=0.01, label="Top-p"),
        "max_tokens": gr.Slider(1, 4096, DEFAULTS.max_tokens, step=1, label="Max new tokens"),
    }
    with gr.Accordion("More", open=False, elem_id="more"):
        named |= {
            "top_k": gr.Slider(0, 200, 0, step=1, label="Top-k", info="0: off"),
            "min_p": gr.Slider(0, 1, 0, step=0.01, label="Min-p", info="0: off"),
            "repetition_penalty": gr.Slider(
                1, 2, 1, step=0.01, label="Repetition penalty", info="1: off"
            ),
            "seed": gr.Textbox(label="Seed", placeholder="Another each time", elem_id="seed"),
            "stop": gr.Textbox(
                label="Stop strings",
                placeholder="One a line",
                lines=2,
                max_lines=6,
                elem_id="stop-strings",
            ),
        }
    key = gr.Textbox(
        label="API key",
        type="password",
        placeholder="If the server asks",
        info="Kept in this browser only",
        elem_id="api-key",
    )
    return Controls(named, preset, key)


def _call(function: str, *first: str) -> str:
    """JavaScript that calls a function of the page's scripts with an event's value."""
    arguments = "".join(f"{json.dumps(argument)}, " for argument in first)
    return f"async (value) => (await lorachat).{function}({arguments}value)"
