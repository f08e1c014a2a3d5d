"""Messages -> ids through a chat template, and ids -> text as they are drawn."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from jinja2.exceptions import TemplateError

from server.errors import ChatTemplateError, ContextLengthError
from server.model.forgery import Disguise, control_tokens
from server.model.token_bound import TokenBound, token_bound
from server.model.token_bytes import token_bytes_of
from server.tools.prompt import in_words, renders_results, renders_tools
from server.types import DEFAULT_CHAT_OPTIONS, ChatOptions, Message

# A UTF-8 character has at most four bytes, and every byte-level token carries at least one.
MAX_HELD_TOKENS = 4
REPLACEMENT = "\ufffd"
# Tokenising takes about 165 bytes for each character: texts beyond this length wait for one another.
LONG_TEXT = 2**18
_LONG_TEXTS = threading.Lock()


class _Words:
    """What is made from a vocabulary, once, when it is asked for. It must not hold the tokenizer it belongs to."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._token_bytes: list[bytes] | None = None
        self._bound: TokenBound | None = None

    def key(self, to_json: Callable[[], str]) -> str:
        if self._key is None:
            self._key = hashlib.sha256(to_json().encode()).hexdigest()
        return self._key

    def token_bytes(self, to_json: Callable[[], str]) -> list[bytes]:
        if self._token_bytes is None:
            self._token_bytes = token_bytes_of(to_json())
        return self._token_bytes

    def bound(self, to_json: Callable[[], str]) -> TokenBound:
        if self._bound is None:
            self._bound = token_bound(to_json())
        return self._bound


# Many adapter versions share one tokenizer of transformers, each with its own template.
_WORDS: WeakKeyDictionary[Any, _Words] = WeakKeyDictionary()


class ChatTokenizer:
    """A transformers tokenizer with the chat template to use; the template may be an adapter's own.

    Rendering runs in transformers' sandboxed Jinja environment. Only the template can write control tokens: the same
    words in a message, a tool's description or a tool's result are tokenised as the plain text they are, so that no
    text can end its turn and begin another's. Fits Tokenizer.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template or _template_of(tokenizer)
        # What a tokenizer.json may bring; transformers' own call takes them off as well.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        self._words = _WORDS.setdefault(tokenizer, _Words())
        added = {t.content: t.special for t in tokenizer.added_tokens_decoder.values()}
        self._control_tokens = control_tokens(added)

    def with_template(self, chat_template: str | None) -> ChatTokenizer:
        """The same words with another template; with None, this one."""
        return self if chat_template is None else ChatTokenizer(self._tokenizer, chat_template)

    @property
    def chat_template(self) -> str | None:
        return self._template

    @property
    def bos_token(self) -> str | None:
        return _text(self._tokenizer.bos_token)

    @property
    def eos_token(self) -> str | None:
        return _text(self._tokenizer.eos_token)

    @property
    def key(self) -> str:
        return self._words.key(self.to_json)

    def to_json(self) -> str:
        text: str = self._tokenizer.backend_tokenizer.to_str()
        return text

    def encode_chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = DEFAULT_CHAT_OPTIONS,
        *,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Ids of the conversation, by default with the assistant's turn opened.

        Raises ChatTemplateError if the template refuses the messages, or if there is none; ContextLengthError as
        encode does.
        """
        rendered, disguise = self._render(messages, options)
        self._check_length(rendered, max_tokens)
        return disguise.encode(rendered, self._encode)

    def render_chat(
        self, messages: Sequence[Message], options: ChatOptions = DEFAULT_CHAT_OPTIONS
    ) -> str:
        """The text that encode_chat tokenises. Raises ChatTemplateError."""
        rendered, disguise = self._render(messages, options)
        return disguise.show(rendered)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """Raises ContextLengthError, before the work, for a text that must have more than max_tokens."""
        self._check_length(text, max_tokens)
        # Not the wrapper's call: it has the library compute offsets, masks and words, which takes thrice as long.
        encode = self._tokenizer.backend_tokenizer.encode_batch_fast
        with _LONG_TEXTS if len(text) > LONG_TEXT else nullcontext():
            ids: list[int] = encode([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def token_bytes(self, token_id: int) -> bytes:
        table = self._token_bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    @property
    def _token_bytes(self) -> list[bytes]:
        return self._words.token_bytes(self.to_json)

    def _check_length(self, text: str, max_tokens: int | None) -> None:
        # Below it no bound refuses: the longest token has CHARACTER_BYTES or more.
        if max_tokens is None or len(text) <= max_tokens:
            return
        least = self._words.bound(self.to_json).least_tokens(text)
        if least > max_tokens:
            raise ContextLengthError(max_tokens, least, None, at_least=True)

    def _encode(self, text: str) -> list[int]:
        # The template writes the special tokens itself, so the tokenizer must not add its own: one BOS, not two.
        return self.encode(text, add_special_tokens=False)

    def _render(self, messages: Sequence[Message], options: ChatOptions) -> tuple[str, Disguise]:
        if not self._template:
            raise ChatTemplateError("this model has no chat template")
        tools = list(options.tools)
        if tools and not renders_tools(self._template):
            messages, tools = in_words(messages, tools), []
        elif not renders_results(self._template):
            messages = in_words(messages, ())
        conversation = [_template_message(message) for message in messages]
        disguise = Disguise(self._control_tokens, (conversation, tools))
        try:
            text: str = self._tokenizer.apply_chat_template(
                disguise.hide(conversation),
                tools=disguise.hide(tools) or None,
                chat_template=self._template,
                add_generation_prompt=options.add_generation_prompt,
                continue_final_message=options.continue_final_message,
                tokenize=False,
            )
        except TemplateError as error:
            raise ChatTemplateError(disguise.show(str(error))) from None
        except (TypeError, ValueError, KeyError) as error:  # a template at odds with these messages
            raise ChatTemplateError(disguise.show(str(error))) from None
        return text, disguise

    def text_decoder(self) -> IncrementalDecoder:
        return IncrementalDecoder(self._tokenizer)


def _template_message(message: Message) -> dict[str, Any]:
    """The form that chat templates expect: arguments of calls as objects, absent fields left out."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return fields


def _text(token: object) -> str | None:
    return None if token is None else str(token)


def _template_of(tokenizer: Any) -> str | None:
    """A tokenizer may have several templates by name; `default` is the one for chat."""
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


class IncrementalDecoder:
    """Decodes ids one at a time; joined, the pieces equal decoding all ids at once.

    A token's text can depend on the token before it (leading spaces) and on the ones after it (characters of several
    tokens). So each push decodes a short window twice, with and without the new token, and shows the difference;
    text that ends in an incomplete character waits.
    """

    def __init__(self, tokenizer: Any) -> None:
        # The library's own tokenizer under transformers' wrapper, whose decode does the same in thrice the time.
        self._backend = tokenizer.backend_tokenizer
        self._ids: list[int] = []
        # Where the window starts: tokens already shown that the next one's text may depend on.
        self._context = 0
        self._shown = 0  # tokens whose text has been shown
        self._incomplete = 0  # tokens since the text began to end in an incomplete character

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._advance(at_end=False)

    def flush(self) -> str:
        """What was held back, without the incomplete character at its end, if there is one."""
        return self._advance(at_end=True)

    def _advance(self, *, at_end: bool) -> str:
        before = self._decode(self._context, self._shown)
        after = self._decode(self._context, len(self._ids))
        if at_end:
            after = after.rstrip(REPLACEMENT) if self._incomplete else after
        elif after.endswith(REPLACEMENT):
            self._incomplete += 1
            if self._incomplete < MAX_HELD_TOKENS:
                return ""
        self._incomplete = 0
        if len(after) <= len(before):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def _decode(self, first: int, last: int) -> str:
        text: str = self._backend.decode(self._ids[first:last], skip_special_tokens=True)
        return text
