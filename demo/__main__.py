"""The main job on the embedded model and data: no GPU, no account, no model hub."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo.errors import DemoError

if TYPE_CHECKING:
    from rich.console import Console

    from demo.training import Published

SERVER_PORT, CLIENT_PORT = 8000, 7860


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(os.environ.get("LORACHAT_CACHE") or ".cache"),
        help="where the embedded model and data are unpacked (LORACHAT_CACHE; default: .cache)",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        default=Path(os.environ.get("LORACHAT_ADAPTERS") or "adapters"),
        help="the adapter volume (LORACHAT_ADAPTERS; default: adapters)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("model", help="prepare the embedded model and print its folder")
    commands.add_parser("data", help="prepare the embedded data and print its files")
    commands.add_parser("train", help="train and publish the demo's adapter, unless it is there")
    ask = commands.add_parser("ask", help="ask two models of a running server the same questions")
    ask.add_argument("--server", default="http://127.0.0.1:8000")
    ask.add_argument("--adapter", default=None, help="default: the demo's adapter")
    run = commands.add_parser("run", help="the whole job: train, serve, compare, chat")
    run.add_argument("--oneshot", action="store_true", help="exit after the comparison")
    arguments = parser.parse_args()
    # A plain SIGTERM would leave the server and the client behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cache, volume = arguments.cache.absolute(), arguments.adapters.absolute()
    try:
        match arguments.command:
            case "model":
                from demo import model

                print(model.prepare(cache))
            case "data":
                from demo import data

                files = data.prepare(cache)
                print(files.help_desk, files.small_talk, sep="\n")
            case "train":
                from demo import training

                _print_losses(training.train(cache, volume))
            case "ask":
                from demo.training import ADAPTER

                _ask(arguments.server, arguments.adapter or ADAPTER)
            case "run":
                _run(cache, volume, oneshot=arguments.oneshot)
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _run(cache: Path, volume: Path, *, oneshot: bool) -> None:
    from demo import model, training
    from demo.programs import Program, free_port

    begun = time.monotonic()
    _say("1/4  the embedded model and data")
    base = model.prepare(cache)
    _say("2/4  fine-tuning a LoRA adapter on the CPU (skipped if it is published already)")
    published = training.train(cache, volume)
    _print_losses(published)
    _say("3/4  starting the server and the web client")
    server_port, client_port = free_port(SERVER_PORT), free_port(CLIENT_PORT)
    server_url, client_url = f"http://127.0.0.1:{server_port}", f"http://127.0.0.1:{client_port}"
    logs = cache / "logs"
    server = Program(
        ["server", "--model", str(base), "--adapters", str(volume), "--port", str(server_port)],
        logs / "server.log",
    )
    client = Program(
        [
            "client",
            "ui",
            "--server",
            server_url,
            "--port",
            str(client_port),
            "--adapters",
            str(volume),
        ],
        logs / "client.log",
    )
    with server, client:
        server.wait_until_up(f"{server_url}/ready", 120)
        client.wait_until_up(client_url, 120)
        _say("4/4  the same questions to the base and to the adapter")
        _ask(server_url, training.ADAPTER)
        _say(f"report  {published.folder / 'report' / 'report.html'}")
        _say(f"logs    {logs}")
        _say(f"done in {time.monotonic() - begun:.0f} s")
        if oneshot:
            return
        _say(f"chat    {client_url}")
        _say(f"API     {server_url}/v1/chat/completions")
        _say("Ctrl-C ends both.")
        try:
            while True:
                time.sleep(1)
                server.check()
                client.check()
        except KeyboardInterrupt:  # the way it is meant to end
            print()


def _ask(server: str, adapter: str) -> None:
    from demo.ask import ask_both

    asyncio.run(ask_both(server, ("base", adapter), _console()))


def _print_losses(published: Published) -> None:
    losses = published.losses
    base, tuned = losses["base"], losses["tuned"]
    _say(
        f"held-out loss, token-weighted over {losses['tokens']} tokens of {losses['rows']} rows never"
        f" trained on: base {base:.3f} → tuned {tuned:.3f} ({tuned / base - 1:+.0%})"
    )


def _console() -> Console:
    from rich.console import Console

    # Into a pipe rich would assume 80 columns, too narrow for two answers.
    return Console(width=None if sys.stdout.isatty() else 120)


def _say(text: str) -> None:
    print(f"demo: {text}", flush=True)


if __name__ == "__main__":
    main()
