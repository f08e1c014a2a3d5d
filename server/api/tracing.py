"""OpenTelemetry traces: one span per request for an answer, in the words of the GenAI semantic conventions.

The packages (requirements/otel.txt) are optional: this module is imported only where traces are asked for. Sampling,
headers, resource and batching are the SDK's own OTEL_* variables. The span is made when the request has ended, with
its own times: nothing is traced while tokens are computed.

Conventions: github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-spans.md (status Development).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers

from server.api.record import RequestRecord
from server.types import Message
from server.version import VERSION

if TYPE_CHECKING:
    from server.api.run import Run

TRACES_PATH = "/v1/traces"


def otlp_exporter(endpoint: str | None) -> SpanExporter:
    """Sends protobuf over HTTP. endpoint: the collector's address; None: what the OTEL_* variables say."""
    if endpoint is None:
        return OTLPSpanExporter()
    base = endpoint.rstrip("/")
    return OTLPSpanExporter(base if base.endswith(TRACES_PATH) else base + TRACES_PATH)


class Tracing:
    """A reporter for the observer. with_content: prompts and answers too.

    Spans go out in batches from a thread of their own; a collector that is away costs spans, never an answer.
    """

    def __init__(self, exporter: SpanExporter, *, with_content: bool = False) -> None:
        resource = Resource({"service.name": "lorachat", "service.version": VERSION}).merge(
            OTELResourceDetector().detect()  # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lorachat", VERSION)
        self._propagator = TraceContextTextMapPropagator()
        self._with_content = with_content

    def __call__(self, record: RequestRecord) -> None:
        operation = record.operation
        # A flood without a valid key must not become a flood of spans.
        if operation is None or not record.is_admitted:
            return
        headers = Headers(scope=record.scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        model = record.asked
        attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "lorachat"}
        if model is not None:
            attributes["gen_ai.request.model"] = model
        span = self._tracer.start_span(
            operation if model is None else f"{operation} {model}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=record.begun_ns,
            attributes=attributes,  # what samplers may decide by
        )
        if span.is_recording():
            for name, value in self._attributes(record).items():
                if value is not None:
                    span.set_attribute(name, value)
            if record.outcome == "failed":
                span.set_status(Status(StatusCode.ERROR))
        span.end(record.begun_ns + int(record.total_seconds * 1e9))

    def close(self) -> None:
        """Send what is left. Takes no longer than the exporter's own timeout."""
        self._provider.shutdown()

    def _attributes(self, record: RequestRecord) -> dict[str, Any]:
        attributes: dict[str, Any] = {
            "http.request.method": record.method,
            "http.route": record.path,
            "http.response.status_code": record.status or None,
            "user_agent.original": record.user_agent,
            "lorachat.request_id": record.request_id or None,
            "lorachat.key": record.key or None,
            "lorachat.outcome": record.outcome,
            "gen_ai.request.stream": record.is_stream or None,
            "error.type": _error_type(record),
        }
        if record.runs:
            attributes |= _run_attributes(record)
            if self._with_content:
                attributes |= _content(record.runs)
        return attributes


def _error_type(record: RequestRecord) -> str | None:
    if record.outcome in ("finished", "ok"):
        return None
    return record.error or ("cancelled" if record.outcome == "cancelled" else str(record.status))


def _run_attributes(record: RequestRecord) -> dict[str, Any]:
    run, usage = record.runs[0], record.usage
    params = run.request.params
    return {
        "gen_ai.request.choice.count": run.request.n if run.request.n != 1 else None,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k or None,
        "gen_ai.request.presence_penalty": params.presence_penalty,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.response.id": run.id,
        "gen_ai.response.model": run.model,
        "gen_ai.response.finish_reasons": record.finish_reasons,
        "gen_ai.response.time_to_first_chunk": record.first_token_seconds
        if record.is_stream
        else None,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "lorachat.queue_seconds": record.queue_seconds,
        "lorachat.first_token_seconds": record.first_token_seconds,
    }


def _content(runs: Sequence[Run]) -> dict[str, Any]:
    """The conversation and the answers, as the conventions' JSON. Stop strings are a caller's text, too."""
    messages: list[dict[str, Any]] = []
    answers = []
    for run in runs:
        if run.messages:
            messages += [_input(message) for message in run.messages]
        else:
            prompt = run.request.model.tokenizer.decode(run.request.prompt_ids)
            messages.append(_text("user", prompt))
        reasons = [reason for _, reason in sorted(run.reasons.items())]
        for index, text in enumerate(run.answers):
            reason = reasons[index] if index < len(reasons) else "error"
            answers.append({**_text("assistant", text), "finish_reason": reason})
    return {
        "gen_ai.input.messages": json.dumps(messages),
        "gen_ai.output.messages": json.dumps(answers),
        "gen_ai.request.stop_sequences": list(runs[0].request.params.stop) or None,
    }


def _input(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        part = {
            "type": "tool_call_response",
            "id": message.tool_call_id,
            "response": message.content,
        }
        return {"role": "tool", "parts": [part]}
    whole = _text(message.role, message.content)
    whole["parts"] += [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        for call in message.tool_calls
    ]
    return whole


def _text(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}] if text else []}
