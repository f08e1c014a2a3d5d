"""The page as a whole: header, settings, tabs, and what keeps the model pickers fresh.

Gradio draws the controls; the conversations themselves are elements of the page's own scripts
(`static/`), so that an answer does not depend on Gradio's stream of events.
"""

from hashlib import sha256
from html import escape
from typing import Any

import gradio as gr

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.types import base_model, default_model, first_adapter
from client.ui.catalog import Catalog, look
from client.ui.controls import PRIVATE, build_controls

_REFRESH_SECONDS = 4.0
_SWITCH_THEME = "async () => { (await lorachat).theme.toggle(); }"
# The settings lie over the page on a narrow screen, so they are open from the start on wide ones only.
_OPEN_SETTINGS = """() => {
    const toggle = document.querySelector('#settings .toggle-button');
    toggle.ariaLabel = 'Settings';
    if (window.innerWidth >= 1100) toggle.click();
}"""


def build_page(client: ChatClient) -> gr.Blocks:
    """All components and their events; needs an event loop only once it is served."""
    with gr.Blocks(title="lorachat", fill_height=True, analytics_enabled=False) as page:
        with gr.Row(elem_id="header"):
            gr.HTML('<h1 id="brand">lora<b>chat</b></h1>', container=False, padding=False)
            status = gr.HTML(_status(client.server, None), elem_id="status", padding=False)
            theme = gr.Button("◐ Theme", elem_id="theme", size="sm", scale=0, min_width=90)
        with gr.Sidebar(
            label="Settings", position="right", open=False, width=300, elem_id="settings"
        ):
            gr.Markdown("## Settings", elem_id="settings-title")
            controls = build_controls()
        with gr.Tabs(elem_id="pages"):
            with gr.Tab("Chat", id="chat", scale=1):
                model = _model_picker("Model", "chat-model")
                _element("lora-chat")
            with gr.Tab("Compare", id="compare", scale=1):
                with gr.Row(elem_id="sides"):
                    left = _model_picker("Model on the left", "left-model")
                    right = _model_picker("Model on the right", "right-model")
                _element("lora-compare")
            with gr.Tab("Adapters", id="adapters"):
                _element('lora-panel src="panels/adapters" every="5"')
            with gr.Tab("Status", id="status-page"):
                _element('lora-panel src="panels/status" every="2"')

        pickers = {"model": model, "left": left, "right": right}
        for name, picker in pickers.items():
            picker.change(
                None,
                picker,
                None,
                js=f"async (value) => {{ (await lorachat).settings.set('{name}', value); }}",
                **PRIVATE,
            )
        controls.connect(page)
        picked = gr.JSON(visible=False)
        _keep_fresh(page, client, status, picked, controls.key, list(pickers.values()))
        page.load(None, None, None, js=_OPEN_SETTINGS, **PRIVATE)
        theme.click(None, None, None, js=_SWITCH_THEME, **PRIVATE)
    return page


def _element(tag: str) -> None:
    """One of the elements that the page's scripts define."""
    name = tag.partition(" ")[0]
    gr.HTML(
        f"<{tag}></{name}>",
        padding=False,
        apply_default_css=False,
        js_on_load=None,
        elem_classes="whole",
    )


def _model_picker(label: str, elem_id: str) -> gr.Dropdown:
    """An empty picker; it is filled with what the server has."""
    return gr.Dropdown(
        [], label=label, show_label=False, container=False, interactive=True, elem_id=elem_id
    )


def _keep_fresh(
    page: gr.Blocks,
    client: ChatClient,
    status: gr.HTML,
    picked: gr.JSON,
    key: gr.Textbox,
    pickers: list[gr.Dropdown],
) -> None:
    async def refresh(
        shown: str | None, wanted: dict[str, str | None], api_key: str
    ) -> tuple[Any, ...]:
        """Look at the server; redraw the status line and the pickers if the page shows otherwise."""
        left, right = wanted.get("left"), wanted.get("right")
        try:
            catalog = await look(client.with_key(api_key))
        except ValueError:
            catalog = Catalog(error=_UNUSABLE_KEY)
        line = _status(client.server, catalog)
        if line == shown:
            return (gr.skip(),) * 4
        if catalog.error is not None:  # what was picked stays, for when the server is back
            return line, *(gr.skip(),) * 3
        models = list(catalog.models)
        base, adapter = base_model(models), first_adapter(models)
        if left == right and left == base:  # as it is before there is any adapter: nobody's choice
            right = None
        choices = [
            (wanted.get("model"), default_model(models)),
            (left, base or default_model(models)),
            (right, adapter or default_model(models)),
        ]
        updates = [
            gr.Dropdown(choices=catalog.choices, value=catalog.keep(model, default))
            for model, default in choices
        ]
        return line, *updates

    # What is drawn is known to the browser alone: an answer of ours may never get there, and a note
    # of it kept here would then stop all later ones. Nor do they travel through Gradio's queue,
    # whose one stream of answers for each page can end without the page noticing. What is picked comes
    # from the page's scripts: of the pickers Gradio takes only what this process has put into them,
    # which is nothing after a restart.
    refreshing: dict[str, Any] = {
        "fn": refresh,
        "inputs": [status, picked, key],
        "outputs": [status, *pickers],
        "js": "async (status) => (await lorachat).settings.beforeRefresh(status)",
        "queue": False,
        **PRIVATE,
    }
    page.load(**refreshing)
    # "multiple": by default a look whose answer is lost would keep all later ones from starting.
    gr.Timer(_REFRESH_SECONDS).tick(**refreshing, trigger_mode="multiple")
    key.change(**refreshing, trigger_mode="multiple")


_UNUSABLE_KEY = ChatError(
    ErrorKind.UNAUTHORIZED,
    "The API key has characters that no key can have.",
    "Enter it again under Settings.",
)


def _status(server: str, catalog: Catalog | None) -> str:
    """One line about the server, as HTML; two catalogs that differ in anything give two lines."""
    if catalog is None:
        state, text = "unknown", "Looking for the server…"
    elif catalog.error is None:
        state, text = "ready", f"Ready: {catalog.summary}"
    else:
        state = "loading" if catalog.is_loading else "away"
        text = str(catalog.error)
    models = sha256(repr(catalog and catalog.models).encode()).hexdigest()[:16]
    address = f'<span class="address"> at {escape(server)}</span>' if state == "ready" else ""
    return (
        f'<span class="dot {state}" data-models="{models}"></span>'
        f'<span role="status">{escape(text)}{address}</span>'
    )
