"""What a check found, and how findings are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    """advice: what to do; empty where nothing is to be done. FAIL: the server does not serve, or not this adapter."""

    check: str
    level: Level
    said: str
    advice: str = ""


def ok(check: str, said: str) -> Finding:
    return Finding(check, "OK", said)


def warn(check: str, said: str, advice: str) -> Finding:
    return Finding(check, "WARN", said, advice)


def fail(check: str, said: str, advice: str) -> Finding:
    return Finding(check, "FAIL", said, advice)


def table(findings: Sequence[Finding]) -> str:
    """A line per finding, its advice below it, and the count at the end."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<4}  {finding.check:<{width}}  {finding.said}")
        if finding.advice:
            lines.append(f"{'':<{width + 6}}  → {finding.advice}")
    counts = ", ".join(
        f"{sum(finding.level == level for finding in findings)} {level}"
        for level in ("OK", "WARN", "FAIL")
    )
    return "\n".join([*lines, counts])


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"ok": not failed(findings), "findings": [asdict(f) for f in findings]}, indent=2)  # fmt: skip


def failed(findings: Sequence[Finding]) -> bool:
    return any(finding.level == "FAIL" for finding in findings)


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
