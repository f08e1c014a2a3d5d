"""`python -m client ui | chat | ask`: talk to a lorachat server in a browser, a terminal or a script."""

import argparse
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from client.exit_codes import EXIT_CODES
from client.sampling import SETTINGS, change
from client.types import Sampling

DEFAULT_SERVER = "http://127.0.0.1:8000"


def build_parser() -> argparse.ArgumentParser:
    """All flags; their defaults come from LORACHAT_* variables where these are set."""
    connection = argparse.ArgumentParser(add_help=False)
    connection.add_argument(
        "--server",
        type=_address,
        metavar="URL",
        default=os.environ.get("LORACHAT_SERVER") or DEFAULT_SERVER,
        help=f"the server's address (LORACHAT_SERVER, default {DEFAULT_SERVER})",
    )
    connection.add_argument(
        "--api-key",
        type=_key,
        metavar="KEY",
        default=os.environ.get("LORACHAT_API_KEY") or None,
        help="key sent to the server; others on this machine can read flags, so rather set the "
        "variable (LORACHAT_API_KEY, default none)",
    )

    parser = argparse.ArgumentParser(
        prog="python -m client", description="Talk to a lorachat server."
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    ui = commands.add_parser(
        "ui",
        parents=[connection],
        help="serve the web client",
        description="Serve the web client: chat with a model, compare two side by side.",
    )
    ui.add_argument(
        "--host",
        default=os.environ.get("LORACHAT_CLIENT_HOST") or "127.0.0.1",
        help="address to listen on (LORACHAT_CLIENT_HOST, default 127.0.0.1)",
    )
    ui.add_argument(
        "--port",
        type=_port,
        # A string, so that argparse checks it as it checks the flag.
        default=os.environ.get("LORACHAT_CLIENT_PORT") or "7860",
        help="port to listen on, 0 for any free one (LORACHAT_CLIENT_PORT, default 7860)",
    )

    ui.add_argument(
        "--adapters",
        type=Path,
        metavar="DIR",
        default=os.environ.get("LORACHAT_ADAPTERS") or None,
        help="the adapter volume, only read: its losses and training reports are shown "
        "(LORACHAT_ADAPTERS, default none)",
    )
    ui.add_argument(
        "--votes",
        type=Path,
        metavar="FILE",
        default=os.environ.get("LORACHAT_VOTES") or "votes.jsonl",
        help="where votes of the Compare page are appended, as preference data "
        "(LORACHAT_VOTES, default votes.jsonl)",
    )
    ui.add_argument(
        "--login",
        type=_login,
        metavar="USER:PASSWORD",
        default=os.environ.get("LORACHAT_CLIENT_LOGIN") or None,
        help="ask visitors of the page for these; others on this machine can read flags, so rather "
        "set the variable (LORACHAT_CLIENT_LOGIN, default none)",
    )

    answer = _answer_flags()
    commands.add_parser(
        "chat",
        parents=[connection, answer],
        help="chat in this terminal",
        description="Chat in this terminal; /help there lists the commands. With input from a "
        "pipe, each line is answered in turn and only the answers are printed.",
    )
    ask = commands.add_parser(
        "ask",
        parents=[connection, answer],
        help="ask one question, for scripts",
        description="Ask one question and print the answer.",
        epilog=EXIT_CODES,
    )
    ask.add_argument(
        "question",
        nargs="*",
        help="its parts are joined by blank lines; - stands for standard input, as does none",
    )
    ask.add_argument(
        "--json", action="store_true", help="print one JSON object with the figures, once whole"
    )
    return parser


def _answer_flags() -> argparse.ArgumentParser:
    """What an answer goes with: model, system prompt, and a flag for each setting."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--model", help="base, an adapter or NAME@VERSION (default: first adapter)")
    flags.add_argument("--system", default="", metavar="TEXT", help="system prompt (default none)")
    defaults = Sampling()
    for name, setting in SETTINGS.items():
        default = getattr(defaults, name)
        flags.add_argument(
            f"--{name.replace('_', '-')}",
            metavar=name.upper(),
            help=f"{setting.help} (default {'none' if default in (None, ()) else default})",
        )
    return flags


def _sampling(options: argparse.Namespace) -> Sampling:
    sampling = Sampling()
    for name in SETTINGS:
        if (text := getattr(options, name)) is not None:
            sampling = change(sampling, name, text)
    return sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all went well, 1 with a sentence on standard error if not."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command == "ui":
        return _ui(options)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        sampling = _sampling(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return _chat(options, sampling) if options.command == "chat" else _ask(options, sampling)


def _ui(options: argparse.Namespace) -> int:
    host = f"[{options.host}]" if ":" in options.host else options.host
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        # Errors of name resolution have negative numbers and a reason of their own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        print(
            f"Cannot listen on {host}:{options.port}: {reason}. "
            "Choose another address with --host and --port.",
            file=sys.stderr,
        )
        return 1
    # docker stop ends the program as Ctrl-C does, and what is opened below is closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with listener, tempfile.TemporaryDirectory(prefix="lorachat-client-") as scratch:
        # Gradio reads these when it is imported. It reports nothing to anybody, and writes nowhere
        # but to a folder of its own: its default, /tmp/gradio, may belong to another user.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ.setdefault("GRADIO_TEMP_DIR", scratch)
        # Around each event it asks Matplotlib, where that is installed, for its backend. With none
        # named, the first to ask waits for pyplot to be imported, and every open page with it.
        os.environ.setdefault("MPLBACKEND", "agg")
        # After each event it would put all events of the past into a table for its monitoring page,
        # which is off.
        os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
        from client.ui.web import Options, create_app, serve

        app = create_app(
            Options(options.server, options.api_key, options.adapters, options.votes, options.login)
        )
        port = listener.getsockname()[1]
        print(f"Web client: http://{host}:{port}  (server: {options.server})", flush=True)
        with suppress(KeyboardInterrupt):
            serve(app, listener)
    return 0


def _chat(options: argparse.Namespace, sampling: Sampling) -> int:
    from client.terminal import Session
    from client.terminal_loop import run

    session = Session(model=options.model, system=options.system, sampling=sampling)
    return run(options.server, options.api_key, session)


def _ask(options: argparse.Namespace, sampling: Sampling) -> int:
    from client.ask import run

    parts = options.question or ["-"]
    if "-" in parts and sys.stdin.isatty() and not options.question:
        print("Write a question, or pipe one in: python -m client ask QUESTION", file=sys.stderr)
        return 2
    if "-" in parts:
        text = sys.stdin.read().strip()
        parts = [text if part == "-" else part for part in parts]
    question = "\n\n".join(part for part in parts if part)
    if not question.strip():
        print("The question is empty. Write one, or pipe one in.", file=sys.stderr)
        return 2
    return run(
        options.server,
        options.api_key,
        question,
        model=options.model,
        system=options.system,
        sampling=sampling,
        as_json=options.json,
    )


def _address(text: str) -> str:
    from client.api import normalise_address

    try:
        return normalise_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _key(text: str) -> str:
    from client.api import normalise_key

    try:
        return normalise_key(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _login(text: str) -> tuple[str, str]:
    user, _, password = text.partition(":")
    if not (user and password):
        raise argparse.ArgumentTypeError("a login has the form USER:PASSWORD, and neither is empty")
    return user, password


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
