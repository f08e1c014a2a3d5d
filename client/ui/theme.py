"""Colours and fonts, the training report's own. System fonts only: nothing is fetched.

`static/style.css` uses the same colours through Gradio's variables.
"""

import gradio as gr

_ACCENT = gr.themes.Color(
    "#f2f6fd", "#e3edfc", "#c5dbf9", "#9dc1f4", "#7fb2ff", "#3f82dd",
    "#1f5fbf", "#194f9f", "#16427f", "#14365f", "#0e2440",
)  # fmt: skip
_GREY = gr.themes.Color(
    "#f5f6f9", "#eceef3", "#d9dde5", "#c3c9d4", "#a5aec0", "#7d879a",
    "#535c6e", "#3a4252", "#262d3b", "#1a1f2b", "#12161f",
)  # fmt: skip

THEME = gr.themes.Base(
    primary_hue=_ACCENT,
    secondary_hue=_ACCENT,
    neutral_hue=_GREY,
    radius_size=gr.themes.sizes.radius_lg,
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
    font_mono=[
        "ui-monospace",
        "SFMono-Regular",
        "Menlo",
        "Consolas",
        "DejaVu Sans Mono",
        "monospace",
    ],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    background_fill_primary="white",
    background_fill_primary_dark="*neutral_900",
    background_fill_secondary="*neutral_50",
    background_fill_secondary_dark="*neutral_950",
    body_text_color="#1d2433",
    body_text_color_dark="#e6e9f0",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    border_color_primary="*neutral_200",
    border_color_primary_dark="*neutral_700",
    block_background_fill="transparent",
    block_background_fill_dark="transparent",
    block_border_width="0px",
    block_shadow="none",
    panel_background_fill="transparent",
    panel_background_fill_dark="transparent",
    stat_background_fill="*primary_600",
    block_label_text_color="*body_text_color",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    input_background_fill="white",
    input_background_fill_dark="*neutral_900",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_700",
    input_border_width="1px",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_400",
    slider_color="*primary_600",
    slider_color_dark="*primary_400",
    button_secondary_background_fill="white",
    button_secondary_background_fill_dark="*neutral_900",
    button_secondary_border_color="*neutral_300",
    button_secondary_border_color_dark="*neutral_700",
    button_border_width="1px",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_text_color="white",
    button_primary_text_color_dark="white",
)
