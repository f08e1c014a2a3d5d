"""The OpenAPI document as one page of HTML: no script, no style sheet, nothing from another server."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f3f3f3;border-radius:4px}
pre{padding:.8rem;overflow-x:auto}
code{padding:.1rem .3rem}
table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ddd;padding:.3rem .5rem;text-align:left;vertical-align:top}
h2{margin-top:2.5rem;border-top:2px solid #ddd;padding-top:1rem}
details{margin:.5rem 0}
@media(prefers-color-scheme:dark){
body{color:#e8e8e8;background:#161616}
code,pre{background:#262626}
td,th{border-color:#444}
a{color:#8ab4f8}}
"""


def docs_page(document: dict[str, Any], base_url: str) -> str:
    """base_url: where the reader reached this server, for the examples."""
    schemas = document["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>lorachat API</title>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<style>{_STYLE}</style><h1>lorachat API</h1><p>{escape(document['info']['description'])}",
        f" Version {escape(document['info']['version'])}. The same for programs:"
        " <a href=/openapi.json>openapi.json</a>.</p><ul>",
    ]
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for method, path, operation in operations:
        anchor = escape(operation["operationId"])
        parts.append(f"<li><a href='#{anchor}'><code>{method} {escape(path)}</code></a></li>")
    parts.append("</ul>")
    for method, path, operation in operations:
        parts.append(_operation(method, path, operation, schemas, base_url))
    return "".join(parts)


def _operation(
    method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any], base_url: str
) -> str:
    parts = [
        f"<h2 id='{escape(operation['operationId'])}'><code>{method} {escape(path)}</code></h2>",
        f"<p>{escape(operation.get('description', ''))}</p>",
    ]
    media = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if media is not None:
        parts.append(_fields(schemas[media["schema"]["$ref"].rpartition("/")[2]]))
        for title, example in media.get("examples", {}).items():
            body = json.dumps(example["value"], indent=2, ensure_ascii=False)
            call = f"curl -s {base_url}{path} -d '{body}'"
            parts.append(
                f"<details><summary>{escape(title)}</summary><pre>{escape(call)}</pre></details>"
            )
    statuses = "".join(
        f"<tr><td>{escape(str(status))}</td><td>{escape(response.get('description', ''))}</td></tr>"
        for status, response in operation["responses"].items()
    )
    parts.append(f"<table><tr><th>status</th><th>meaning</th></tr>{statuses}</table>")
    return "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind(field))}</td>"
        f"<td>{'required' if name in required else ''}</td></tr>"
        for name, field in schema["properties"].items()
    ]
    text = escape(schema.get("description", ""))
    return f"<p>{text}</p><table><tr><th>field</th><th>values</th><th></th></tr>{''.join(rows)}</table>"


def kind(field: dict[str, Any]) -> str:
    """A field's values in words, from its JSON Schema."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in field:
            told = [kind(option) for option in field[key] if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(told))
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    if "const" in field:
        return json.dumps(field["const"])
    if field.get("type") == "array":
        most = f", at most {field['maxItems']}" if "maxItems" in field else ""
        return f"list of {kind(field.get('items', {}))}{most}"
    name = str(field.get("type", "anything"))
    bounds = [
        f"{word} {field[key]}"
        for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "over"), ("maximum", "to"), ("exclusiveMaximum", "below"),
            ("minLength", "at least"), ("maxLength", "at most"),
        )
        if key in field and abs(field[key]) < 2**53
    ]  # fmt: skip
    unit = " characters" if "maxLength" in field else ""
    return f"{name} {' '.join(bounds)}{unit}".strip()
