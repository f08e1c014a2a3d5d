"""The chat tab: one conversation with one model."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from client.api import ChatClient
from client.types import ChatRequest
from client.ui import transcript
from client.ui.answers import Answer, watch
from client.ui.catalog import look
from client.ui.controls import Controls
from client.ui.switches import Place, StopSwitches
from client.ui.transcript import History

Values = dict[Any, Any]  # by component
Update = tuple[Any, Any]  # of the conversation and the question box

CAN_SEND = {"submit_btn": "Send", "stop_btn": False}
CAN_STOP = {"submit_btn": False, "stop_btn": "Stop"}

PLACEHOLDER = "## Ask something\nThe answer appears here as it is written."

# Nothing of the page is meant to be called as an API; without this each handler would be one.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def model_picker(label: str, elem_id: str) -> gr.Dropdown:
    """An empty picker; the page fills it with what the server has."""
    return gr.Dropdown(
        [], label=label, show_label=False, container=False, interactive=True, elem_id=elem_id
    )


class ChatTab:
    """Draws the tab where the caller stands, and answers its events."""

    def __init__(self, client: ChatClient, switches: StopSwitches, controls: Controls) -> None:
        self._client = client
        self._switches = switches
        self._controls = controls
        self.model = model_picker("Model", "chat-model")
        self.history = gr.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="conversation",
            height=None,
            placeholder=PLACEHOLDER,
            buttons=["copy", "copy_all"],
            layout="bubble",
        )
        self.question = gr.Textbox(
            show_label=False,
            container=False,
            label="Question",
            placeholder="Write a message",
            lines=1,
            max_lines=8,
            autofocus=True,
            elem_id="question",
            **CAN_SEND,
        )
        self._connect()

    def _connect(self) -> None:
        outputs = [self.history, self.question]
        asking = {"outputs": outputs, "show_progress": "hidden", **PRIVATE}
        # A set of inputs: the handlers get their values as a dictionary by component.
        inputs = {self.question, self.history, self.model, *self._controls.inputs}
        # Whatever changes the conversation ends the answer being written first. Without `cancels`
        # the browser would still show what is under way of that answer, over the change.
        asked = self.question.submit(self.ask, inputs, **asking)
        retried = self.history.retry(self.retry, inputs, cancels=asked, **asking)
        self.question.submit(None, None, None, cancels=retried, **PRIVATE)
        self.history.undo(self.undo, self.history, cancels=[asked, retried], **asking)
        self.history.clear(self.clear, None, cancels=[asked, retried], **asking)
        self.question.stop(self.stop, None, None, show_progress="hidden", **PRIVATE)

    async def ask(self, values: Values, request: gr.Request) -> AsyncIterator[Update]:
        """Add the question to the conversation and stream its answer."""
        question = values[self.question]
        if not question.strip():
            yield gr.skip(), gr.skip()
            return
        history = [*values[self.history], transcript.user_entry(question)]
        async with aclosing(self._answer(history, values, request)) as updates:
            conversation, _ = await anext(updates)
            yield conversation, gr.Textbox(value="", **CAN_STOP)
            async for update in updates:
                yield update

    async def retry(
        self, values: Values, request: gr.Request, which: gr.RetryData
    ) -> AsyncIterator[Update]:
        """Answer a question once more; what came after it is dropped."""
        index = transcript.entry_index(which.index)
        history = transcript.up_to_question(values[self.history], index)
        if not history:
            yield gr.skip(), gr.skip()
            return
        async with aclosing(self._answer(history, values, request)) as updates:
            async for update in updates:
                yield update

    async def _answer(
        self, history: History, values: Values, request: gr.Request
    ) -> AsyncGenerator[Update]:
        model = values[self.model]
        yield [*history, transcript.answer_entry(Answer(model or ""))], gr.Textbox(**CAN_STOP)
        if model is None:
            failed = Answer("", error=(await look(self._client)).why_no_model)
            yield [*history, transcript.answer_entry(failed)], gr.Textbox(**CAN_SEND)
            return
        system, sampling = self._controls.system_prompt(values), self._controls.sampling(values)
        chat = ChatRequest(model, transcript.messages(history, system), sampling)
        await self.stop(request)
        with self._switches.running(self._place(request)) as switch:
            async with aclosing(watch(self._client, [chat], switch)) as snapshots:
                async for (answer,) in snapshots:
                    box = gr.Textbox(**CAN_SEND) if answer.has_ended else gr.skip()
                    yield [*history, transcript.answer_entry(answer)], box

    async def stop(self, request: gr.Request) -> None:
        """End the answer; what it has said so far stays."""
        await self._switches.stop(self._place(request))

    async def clear(self, request: gr.Request) -> Update:
        """Forget the conversation."""
        await self.stop(request)
        return [], gr.Textbox(**CAN_SEND)

    async def undo(self, history: History, request: gr.Request, which: gr.UndoData) -> Update:
        """Take a question back into the box, and forget what came after it."""
        await self.stop(request)
        kept = transcript.up_to_question(history, transcript.entry_index(which.index))
        if not kept:
            return gr.skip(), gr.skip()
        question = kept[-1]["content"][0]["text"]
        return kept[:-1], gr.Textbox(value=question, **CAN_SEND)

    @staticmethod
    def _place(request: gr.Request) -> Place:
        return (str(request.session_hash), "chat")
