"""`python -m server.native`: compile the native decoder, if that has not been done for these sources."""

from __future__ import annotations

import argparse
import sys

from server.native.build import BuildError, build


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.native",
        description="Compile the server's native decoder; does nothing if that is done.",
    )
    parser.add_argument(
        "--optional",
        action="store_true",
        help="where it cannot be compiled, say so and exit with 0",
    )
    options = parser.parse_args()
    try:
        compiled = build()
    except BuildError as error:
        print(f"native: {error}", file=sys.stderr)
        return 0 if options.optional else 1
    if compiled:
        print(f"native: compiled {', '.join(compiled)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
