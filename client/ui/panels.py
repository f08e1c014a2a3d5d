"""The Status and Adapters pages as HTML. Knows what is shown, not where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from client.errors import ChatError
from client.figures import seconds
from client.metrics import History
from client.types import Standing
from client.ui.catalog import Catalog
from client.volume import Version

NOTHING = "–"
_NOTHING_TOLD: Mapping[str, Standing] = {}
# The server's words for where a served version is.
_MEMORY = {
    "serving": "answering",
    "loaded": "in memory",
    "pinned": "pinned in memory",
    "available": "loaded on demand",
}
_NO_REASON = {
    "unloaded": "an operator took it out of service",
    "draining": "it was removed; answers that began with it go on",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One version and how it fares: `state` is a class name, `words` and `reason` are for people."""

    version: Version
    state: str
    words: str
    reason: str = ""
    digest: str | None = None


def status_page(server: str, catalog: Catalog, history: History | None, keep_seconds: float) -> str:
    """`history` is None where the server has no metrics."""
    if catalog.error is None:
        state, sentence, next_step = "ready", "The server is ready.", ""
    else:
        state = "loading" if catalog.is_loading else "away"
        sentence, next_step = catalog.error.sentence, catalog.error.next_step
    return _TEMPLATES.get_template("status.html.j2").render(
        server=server,
        state=state,
        sentence=sentence,
        next_step=next_step,
        models=catalog.summary if catalog.models else "",
        history=history,
        minutes=round(keep_seconds / 60),
    )


def adapters_page(
    catalog: Catalog,
    versions: Sequence[Version] | None,
    standings: Mapping[str, Standing] | None = None,
) -> str:
    """What the server lists, joined with what lies on the volume (None: there is no volume here).

    standings: what the server tells an operator; None where it does not.
    """
    rows = adapter_rows(catalog, versions or (), standings or {})
    names = dict.fromkeys(row.version.name for row in rows)
    return _TEMPLATES.get_template("adapters.html.j2").render(
        base=next((m for m in catalog.models if m.is_base), None),
        adapters=[(name, [r for r in rows if r.version.name == name]) for name in names],
        error=catalog.error,
        has_volume=versions is not None,
    )


def adapter_rows(
    catalog: Catalog, versions: Sequence[Version], standings: Mapping[str, Standing] = _NOTHING_TOLD
) -> list[Row]:
    """One row for each version that is served or on the volume, by name and then newest first."""
    served = {model.id: model for model in catalog.models if model.is_pinned}
    latest = {m.root for m in catalog.models if not m.is_base and not m.is_pinned}
    on_volume = {version.id: version for version in versions}
    for name in (served.keys() | standings.keys()) - on_volume.keys():
        adapter, _, number = name.partition("@")
        on_volume[name] = Version(adapter, number, is_latest=name in latest)
    base = next((m.root for m in catalog.models if m.is_base), None)
    rows = []
    for name in sorted(on_volume, key=lambda n: (n.partition("@")[0], _descending(n))):
        version, model = on_volume[name], served.get(name)
        if model is not None:
            words = ["served", *(["latest"] if name in latest else [])]
            if name in standings and standings[name].state in _MEMORY:
                words.append(_MEMORY[standings[name].state])
            rows.append(Row(version, "served", " · ".join(words), digest=model.digest))
        elif name in standings:
            rows.append(_told(version, standings[name]))
        else:
            rows.append(_not_served(version, catalog.error, base))
    return rows


def _told(version: Version, standing: Standing) -> Row:
    """A version that is not served, in the server's own words."""
    reason = standing.reason or _NO_REASON.get(standing.state, "")
    if reason.split(" ")[0].isalpha():  # and no file's name
        reason = reason[:1].upper() + reason[1:]
    return Row(version, "refused", standing.state, reason)


def _not_served(version: Version, error: ChatError | None, base: str | None) -> Row:
    if version.problem:
        return Row(version, "broken", "unreadable", version.problem)
    if error is not None:
        return Row(version, "unknown", "server not ready")
    reason = (
        "The server does not list it. With an operator's key this page says why; so does its log."
    )
    if base and version.base and version.base.split("/")[-1] != base.split("/")[-1]:
        reason = f"It was trained for {version.base}; the server's base is {base}. {reason}"
    return Row(version, "refused", "not served", reason)


def _descending(name: str) -> list[int]:
    return [-ord(character) for character in name.partition("@")[2]]


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value * 100:.0f} %" if value == 0 or value >= 0.1 else f"{value * 100:.1f} %"


def _size(value: float | None) -> str:
    """Bytes in units of 1000."""
    if value is None:
        return NOTHING
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _time(value: float | None) -> str:
    if value is None:
        return NOTHING
    return seconds(value) if value < 120 else f"{value / 60:.0f} min"


def _last_rate(rates: Sequence[float]) -> str:
    """The pace of the last 5 looks, so that it does not jump."""
    recent = rates[-5:]
    return f"{sum(recent) / len(recent):.1f}" if recent else NOTHING


def _points(course: Sequence[float]) -> str:
    """SVG points in a box of 100 by 24, the newest at the right."""
    top = max(*course, 1e-9)
    step = 100 / (len(course) - 1)
    return " ".join(f"{i * step:.1f},{23 - 22 * v / top:.1f}" for i, v in enumerate(course))


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters.update(
    count=_count,
    percent=_percent,
    size=_size,
    time=_time,
    last_rate=_last_rate,
    points=_points,
)
