"""A model's Markdown as HTML that is safe to show, with highlighted code.

HTML in the text is shown, not obeyed (a block of it as code), and images become links: an answer can neither
act in the page nor make it fetch anything.
"""

import re
from collections.abc import MutableMapping, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.html_blocks import block_names
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, html_block
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_LIGHT, _DARK = "xcode", "github-dark"
_FORMATTER = HtmlFormatter(nowrap=True)


def to_html(text: str) -> str:
    """The text as HTML; `data-copy` marks the button that copies the code beside it."""
    return str(_PARSER.render(text))


def code_style() -> str:
    """CSS for the colours of code, for both themes."""
    light = HtmlFormatter(style=_LIGHT).get_style_defs(".code code")
    dark = HtmlFormatter(style=_DARK).get_style_defs(".dark .code code")
    return "\n".join(
        line
        for line in f"{light}\n{dark}".splitlines()
        if " code " in line and "background" not in line
    )


def _code(text: str, language: str) -> str:
    try:
        body = highlight(text, get_lexer_by_name(language), _FORMATTER)
    except ClassNotFound:
        body = escape(text)
    name = escape(language or "text")
    return (
        f'<figure class="code"><figcaption><span>{name}</span>'
        '<button type="button" data-copy>Copy</button></figcaption>'
        f'<pre tabindex="0" aria-label="Code, {name}"><code>{body}</code></pre></figure>\n'
    )


def _fence(
    _: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    __: OptionsDict,
    ___: MutableMapping[str, Any],
) -> str:
    token = tokens[index]
    return _code(token.content, token.info.split(maxsplit=1)[0] if token.info.strip() else "")


def _html_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """CommonMark's HTML blocks of elements that HTML knows: <think> and the like enclose Markdown."""
    line = state.src[state.bMarks[first] + state.tShift[first] : state.eMarks[first]]
    return bool(_HTML_LINE.match(line)) and html_block(state, first, last, silent)


def _html_code(
    _: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    __: OptionsDict,
    ___: MutableMapping[str, Any],
) -> str:
    return _code(tokens[index].content, "html")


def _image(
    _: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    __: OptionsDict,
    ___: MutableMapping[str, Any],
) -> str:
    address = str(tokens[index].attrs.get("src", ""))
    return f'<a {_ELSEWHERE}href="{escape(address)}">{escape(tokens[index].content or address)}</a>'


def _link_open(
    _: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    __: OptionsDict,
    ___: MutableMapping[str, Any],
) -> str:
    return f'<a {_ELSEWHERE}href="{escape(str(tokens[index].attrs.get("href", "")))}">'


_ELSEWHERE = 'target="_blank" rel="noopener noreferrer nofollow" '
_HTML_LINE = re.compile(
    rf"<!doctype\b|<!--|</?(?:{'|'.join([*block_names, 'pre', 'script', 'style', 'textarea'])})(?=[\s/>]|$)",
    re.IGNORECASE,
)
# With "html" blocks of it are found; nothing of it is ever given to the page as it is.
_PARSER = MarkdownIt("commonmark", {"html": True, "breaks": True})
_PARSER.enable(["table", "strikethrough"]).disable("html_inline")
_PARSER.block.ruler.at("html_block", _html_block, {"alt": ["paragraph", "reference", "blockquote"]})
_PARSER.add_render_rule("html_block", _html_code)
for _rule in ("fence", "code_block"):
    _PARSER.add_render_rule(_rule, _fence)
_PARSER.add_render_rule("image", _image)
_PARSER.add_render_rule("link_open", _link_open)
_PARSER.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
_PARSER.add_render_rule("table_close", lambda *_: "</table></div>\n")
