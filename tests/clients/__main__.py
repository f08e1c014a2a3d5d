"""`make clients`: every client against a real server with the embedded model; prints a table.

Runs in the project's own environment; the clients live in theirs (requirements/clients.txt, tests/clients/node).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NODE = HERE / "node"


@dataclass(frozen=True)
class Client:
    """distribution: whose version is shown. runner: the interpreter, or node."""

    name: str
    script: Path
    distribution: str
    runner: Path


@dataclass(frozen=True)
class Outcome:
    client: Client
    version: str
    exercised: str
    is_passed: bool
    seconds: float


def main() -> int:
    environment = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv-clients").absolute()
    python = environment / "bin" / "python"
    with server() as base_url:
        outcomes = [
            run(client, base_url) for client in [*clients(python), *readme(python, base_url)]
        ]
    rows = [
        (
            o.client.name,
            o.version,
            o.exercised,
            "pass" if o.is_passed else "FAIL",
            f"{o.seconds:.0f} s",
        )
        for o in outcomes
    ]
    print_table(("client", "version", "exercised", "result", "time"), rows)
    return 0 if all(outcome.is_passed for outcome in outcomes) else 1


def clients(python: Path) -> list[Client]:
    scripts = HERE / "python"
    found = [
        Client(
            "openai (Python, newest)", scripts / "openai_client.py", "openai", Path(sys.executable)
        ),
        Client("openai (Python)", scripts / "openai_client.py", "openai", python),
        Client("LangChain ChatOpenAI", scripts / "langchain_client.py", "langchain-openai", python),
        Client("LiteLLM", scripts / "litellm_client.py", "litellm", python),
        Client("Instructor", scripts / "instructor_client.py", "instructor", python),
        Client("Pydantic AI", scripts / "pydantic_ai_client.py", "pydantic-ai-slim", python),
        Client("llm command", scripts / "llm_command.py", "llm", python),
        Client("lm-eval", scripts / "lm_eval_client.py", "lm_eval", python),
    ]
    node = shutil.which("node")
    if node is None:
        print("clients: node is not installed, so its clients are left out", file=sys.stderr)
        return found
    return [
        *found,
        Client("openai (Node)", NODE / "openai_client.mjs", "openai", Path(node)),
        Client("Vercel AI SDK", NODE / "ai_sdk_client.mjs", "ai", Path(node)),
    ]


def readme(python: Path, base_url: str) -> list[Client]:
    """The README's own lines, as they stand but for the address."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = []
    for language, code in re.findall(r"^```(py|js)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        runner = python if language == "py" else Path(shutil.which("node") or "")
        if not runner.name:
            continue
        modules = re.findall(r"^(?:from|import) (?:.* from )?[\"']?([@\w/-]+)", code, re.MULTILINE)
        distribution = "ai" if "ai" in modules else modules[0].replace("_", "-")
        distribution = {"pydantic-ai": "pydantic-ai-slim"}.get(distribution, distribution)
        folder = (
            NODE if language == "js" else ROOT / "runs"
        )  # node looks for modules beside the script
        script = folder / f"readme-{len(found)}.{'mjs' if language == 'js' else 'py'}"
        last = "console.log" if language == "js" else "print"
        lines = code.replace("http://127.0.0.1:8000/v1", base_url)
        script.write_text(f'{lines}\n{last}("EXERCISED the lines in the README")\n')
        shown = modules[-1] if language == "js" else modules[0]
        found.append(
            Client(
                f"README: {shown}",
                script,
                distribution,
                runner,
            )
        )
    return found


def run(client: Client, base_url: str) -> Outcome:
    begun = time.monotonic()
    try:
        result = subprocess.run(
            [str(client.runner), str(client.script)],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            env={**os.environ, "LORACHAT_BASE_URL": base_url},
        )
        output, is_passed = result.stdout + result.stderr, result.returncode == 0
    except subprocess.TimeoutExpired as error:
        output, is_passed = f"no end within {error.timeout:.0f} s", False
    told = re.search(r"^EXERCISED (.*)$", output, re.MULTILINE)
    if not is_passed:
        print(f"--- {client.name}\n{output[-4000:]}", file=sys.stderr)
    return Outcome(
        client,
        version(client),
        told[1] if told else "-",
        is_passed and told is not None,
        time.monotonic() - begun,
    )


def version(client: Client) -> str:
    if client.script.suffix == ".mjs":
        package = f"node_modules/{client.distribution}/package.json"
        code = f"console.log(JSON.parse(require('fs').readFileSync('{package}')).version)"
        command = [str(client.runner), "-e", code]
    else:
        code = f"import importlib.metadata as m; print(m.version('{client.distribution}'))"
        command = [str(client.runner), "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=NODE)
    return result.stdout.strip() or "not installed"


@contextmanager
def server() -> Iterator[str]:
    """The address of a server with the embedded model, for as long as the block runs."""
    from demo.model import prepare

    model = prepare(Path(os.environ.get("LORACHAT_CACHE") or ROOT / ".cache"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = ROOT / "runs" / "clients-server.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--model", str(model), "--port", str(port), "--max-context", "2048"],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while not is_ready(f"http://127.0.0.1:{port}/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, tuple("-" * width for width in widths), *rows]:
        print(
            "| "
            + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            + " |"
        )


if __name__ == "__main__":
    sys.exit(main())
