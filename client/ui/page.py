"""The page as a whole: header, settings, tabs, and what keeps the model pickers fresh."""

from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from client.api import ChatClient
from client.types import base_model, default_model, first_adapter
from client.ui.catalog import Catalog, look
from client.ui.chat_tab import PRIVATE, ChatTab
from client.ui.compare_tab import CompareTab
from client.ui.controls import build_controls
from client.ui.switches import StopSwitches

STYLE = Path(__file__).with_name("style.css")
_REFRESH_SECONDS = 4.0
_SWITCH_THEME = "() => { document.body.classList.toggle('dark'); }"
# The settings lie over the page on a narrow screen, so they are open from the start on wide ones only.
_OPEN_SETTINGS = """() => {
    if (window.innerWidth >= 900) document.querySelector('#settings .toggle-button')?.click();
}"""


def build_page(client: ChatClient) -> gr.Blocks:
    """All components and their events; needs an event loop only once it is served."""
    switches = StopSwitches()
    with gr.Blocks(title="lorachat", fill_height=True, analytics_enabled=False) as page:
        with gr.Row(elem_id="header"):
            gr.HTML('<h1 id="brand">lorachat</h1>', container=False, padding=False)
            status = gr.HTML(_status(client.server, None), elem_id="status", padding=False)
            theme = gr.Button("◐ Theme", elem_id="theme", size="sm", scale=0, min_width=90)
        with gr.Sidebar(
            label="Settings", position="right", open=False, width=300, elem_id="settings"
        ):
            gr.Markdown("## Settings", elem_id="settings-title")
            controls = build_controls()
        with gr.Tabs():
            with gr.Tab("Chat", id="chat", scale=1):
                chat = ChatTab(client, switches, controls)
            with gr.Tab("Compare", id="compare", scale=1):
                compare = CompareTab(client, switches, controls)

        pickers = [chat.model, compare.left_model, compare.right_model]

        async def refresh(
            shown: str | None, chat_model: str | None, left: str | None, right: str | None
        ) -> tuple[Any, ...]:
            """Look at the server; redraw the status line and the pickers if the page shows otherwise."""
            catalog = await look(client)
            line = _status(client.server, catalog)
            if line == shown:
                return (gr.skip(),) * 4
            if catalog.error is not None:  # what was picked stays, for when the server is back
                return line, *(gr.skip(),) * 3
            models = list(catalog.models)
            base, adapter = base_model(models), first_adapter(models)
            if left == right:  # as it is before there is any adapter: nobody's choice
                right = None
            wanted = [
                (chat_model, default_model(models)),
                (left, base or default_model(models)),
                (right, adapter or default_model(models)),
            ]
            updates = [
                gr.Dropdown(choices=catalog.choices, value=catalog.keep(picked, default))
                for picked, default in wanted
            ]
            return line, *updates

        # What is drawn is known to the browser alone: an answer of ours may never get there, and a note
        # of it kept here would then stop all later ones. Nor do they travel through Gradio's queue,
        # whose one stream of answers for each page can end without the page noticing.
        refreshing: dict[str, Any] = {
            "fn": refresh,
            "inputs": [status, *pickers],
            "outputs": [status, *pickers],
            "queue": False,
            "show_progress": "hidden",
            **PRIVATE,
        }
        page.load(**refreshing)
        page.load(None, None, None, js=_OPEN_SETTINGS, **PRIVATE)
        # "multiple": by default a look whose answer is lost would keep all later ones from starting.
        gr.Timer(_REFRESH_SECONDS).tick(**refreshing, trigger_mode="multiple")
        theme.click(None, None, None, js=_SWITCH_THEME, **PRIVATE)
    return page


def _status(server: str, catalog: Catalog | None) -> str:
    """One line about the server, as HTML; two catalogs that differ in anything give two lines."""
    if catalog is None:
        state, text = "unknown", "Looking for the server…"
    elif catalog.error is None:
        adapters = sum(not m.is_base and not m.is_pinned for m in catalog.models)
        counted = "1 adapter" if adapters == 1 else f"{adapters or 'no'} adapters"
        state, text = "ready", f"Ready: base and {counted}"
    else:
        state = "loading" if catalog.is_loading else "away"
        text = str(catalog.error)
    models = sha256(repr(catalog and catalog.models).encode()).hexdigest()[:16]
    address = f'<span class="address"> at {escape(server)}</span>' if state == "ready" else ""
    return (
        f'<span class="dot {state}" data-models="{models}"></span>'
        f'<span role="status">{escape(text)}{address}</span>'
    )
