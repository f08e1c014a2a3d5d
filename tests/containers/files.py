"""Reads the container files as a user's Docker would, without a Docker engine. No checks here."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"(?<!\$)\$\{(?P<name>[A-Z0-9_]+)(?::?[-?](?P<default>[^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One Dockerfile instruction, continuation lines joined: `COPY`, `server/ server/`."""

    name: str
    text: str

    def words(self) -> list[str]:
        """The arguments without the instruction's own flags; JSON (exec) form or shell words."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


@dataclass(slots=True)
class Stage:
    """A `FROM` and what follows it."""

    name: str
    parent: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        return [i for i in self.instructions if i.name == name]


@dataclass(slots=True)
class Dockerfile:
    """The stages of one Dockerfile and the arguments declared before the first."""

    path: Path
    arguments: dict[str, str]
    stages: dict[str, Stage]

    def lineage(self, target: str) -> list[Stage]:
        """The stages that make up a target, base first; `${ARG}` in FROM takes the argument's default."""
        chain: list[Stage] = []
        name = target
        while name in self.stages:
            chain.insert(0, self.stages[name])
            name = self.resolve(self.stages[name].parent)
        return chain

    def resolve(self, text: str) -> str:
        """`${ARG}` replaced by its default."""
        return re.sub(r"\$\{(\w+)\}", lambda m: self.arguments[m[1]], text)

    def instructions(self, target: str, name: str) -> list[Instruction]:
        return [i for stage in self.lineage(target) for i in stage.all(name)]

    def environment(self, target: str) -> dict[str, str]:
        """The target's ENV as one mapping."""
        words = [word for i in self.instructions(target, "ENV") for word in i.words()]
        return dict(word.split("=", 1) for word in words)


def read_dockerfile(name: str) -> Dockerfile:
    path = ROOT / name
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            parent, _, alias = rest.partition(" AS ")
            stage = stages[alias] = Stage(alias, parent)
        elif stage is None:
            key, _, default = rest.partition("=")
            arguments[key] = default
        else:
            stage.instructions.append(Instruction(keyword, rest.strip()))
    return Dockerfile(path, arguments, stages)


def compose() -> dict[str, Any]:
    """The compose file as YAML reads it: anchors merged, variables as written."""
    return dict(yaml.safe_load(COMPOSE_FILE.read_text()))


def services() -> dict[str, dict[str, Any]]:
    return dict(compose()["services"])


def image_target(service: dict[str, Any]) -> tuple[Dockerfile, str]:
    """The Dockerfile and the stage that a service is built from."""
    build = service["build"]
    dockerfile = read_dockerfile(build["dockerfile"])
    for key, value in build.get("args", {}).items():
        if key in dockerfile.arguments:
            dockerfile.arguments[key] = value
    return dockerfile, build.get("target", list(dockerfile.stages)[-1])


def with_defaults(text: str) -> str:
    """`${NAME:-default}` replaced by its default."""
    return VARIABLE.sub(lambda m: m["default"] or "", text)


def read_pins(name: str) -> dict[str, str]:
    """A constraint file as {normalised package name: version}. Raises ValueError for a line that is no exact pin."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        if match is None:
            raise ValueError(f"{name}: not an exact pin: {line!r}")
        pins[normalised(match[1])] = match[2]
    return pins


def read_requirements(name: str) -> set[str]:
    """The packages a requirement file names, `-r` lines followed."""
    packages: set[str] = set()
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        if line.startswith("-r "):
            packages |= read_requirements(line[3:].strip())
        elif line and not line.startswith("#"):
            packages.add(normalised(re.split(r"[=<>!~\[; ]", line)[0]))
    return packages


def normalised(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
