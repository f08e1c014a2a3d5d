"""The compare tab: the same question to two models at once, side by side."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from client.api import ChatClient
from client.types import ChatRequest
from client.ui import transcript
from client.ui.answers import Answer, watch
from client.ui.catalog import look
from client.ui.chat_tab import CAN_SEND, CAN_STOP, PRIVATE, Values, model_picker
from client.ui.controls import Controls
from client.ui.switches import Place, StopSwitches

Update = tuple[Any, Any, Any]  # of both conversations and the question box


class CompareTab:
    """Draws the tab where the caller stands, and answers its events."""

    def __init__(self, client: ChatClient, switches: StopSwitches, controls: Controls) -> None:
        self._client = client
        self._switches = switches
        self._controls = controls
        with gr.Row(elem_id="sides"):
            self.left_model, self.left = self._side("left")
            self.right_model, self.right = self._side("right")
        self.question = gr.Textbox(
            show_label=False,
            container=False,
            label="Question to both",
            placeholder="Write a message to both",
            lines=1,
            max_lines=8,
            elem_id="compare-question",
            **CAN_SEND,
        )
        self._connect()

    def _side(self, name: str) -> tuple[gr.Dropdown, gr.Chatbot]:
        with gr.Column(min_width=300):
            model = model_picker(f"Model on the {name}", f"{name}-model")
            conversation = gr.Chatbot(
                label=f"Conversation on the {name}",
                show_label=False,
                elem_id=name,
                height=None,
                placeholder="The answer of the model above appears here.",
                buttons=["copy"],
                layout="bubble",
            )
        return model, conversation

    def _connect(self) -> None:
        outputs = [self.left, self.right, self.question]
        sides = {self.left, self.right, self.left_model, self.right_model}
        inputs = {self.question, *sides, *self._controls.inputs}
        quiet = {"show_progress": "hidden", **PRIVATE}
        asked = self.question.submit(self.ask, inputs, outputs, **quiet)
        self.question.stop(self.stop, None, None, **quiet)
        for side in (self.left, self.right):
            side.clear(self.clear, None, outputs, cancels=asked, **quiet)

    async def ask(self, values: Values, request: gr.Request) -> AsyncIterator[Update]:
        """Add the question to both conversations and stream both answers."""
        question = values[self.question]
        if not question.strip():
            yield gr.skip(), gr.skip(), gr.skip()
            return
        models = [values[self.left_model], values[self.right_model]]
        histories = [
            [*values[side], transcript.user_entry(question)] for side in (self.left, self.right)
        ]

        def show(answers: list[Answer], box: Any) -> Update:
            left, right = (
                [*history, transcript.answer_entry(answer)]
                for history, answer in zip(histories, answers, strict=True)
            )
            return left, right, box

        yield show([Answer(m or "") for m in models], gr.Textbox(value="", **CAN_STOP))
        if None in models:
            error = (await look(self._client)).why_no_model
            yield show([Answer("", error=error)] * 2, gr.Textbox(**CAN_SEND))
            return
        system, sampling = self._controls.system_prompt(values), self._controls.sampling(values)
        requests = [
            ChatRequest(model, transcript.messages(history, system), sampling)
            for model, history in zip(models, histories, strict=True)
        ]
        with self._switches.running(self._place(request)) as switch:
            async with aclosing(watch(self._client, requests, switch)) as snapshots:
                async for answers in snapshots:
                    has_ended = all(answer.has_ended for answer in answers)
                    yield show(answers, gr.Textbox(**CAN_SEND) if has_ended else gr.skip())

    async def stop(self, request: gr.Request) -> None:
        """End both answers; what they have said so far stays."""
        await self._switches.stop(self._place(request))

    async def clear(self, request: gr.Request) -> Update:
        """Forget both conversations: they are compared turn by turn."""
        await self.stop(request)
        return [], [], gr.Textbox(**CAN_SEND)

    @staticmethod
    def _place(request: gr.Request) -> Place:
        return (str(request.session_hash), "compare")
