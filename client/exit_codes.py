"""The exit codes of `ask`: what a script needs to tell apart."""

from client.errors import ErrorKind

FAILED, REFUSED, TRY_AGAIN, INTERRUPTED = 1, 3, 4, 130
_CODES = {
    ErrorKind.UNAUTHORIZED: REFUSED,
    ErrorKind.UNKNOWN_MODEL: REFUSED,
    ErrorKind.REFUSED: REFUSED,
    ErrorKind.BUSY: TRY_AGAIN,
    ErrorKind.LOADING: TRY_AGAIN,
}
EXIT_CODES = (
    f"exit codes: 0 answered, {FAILED} no answer or a broken one, 2 wrong usage, "
    f"{REFUSED} refused (model, key, settings or length), {TRY_AGAIN} busy or loading: try again later"
)


def exit_code(kind: ErrorKind) -> int:
    """The code for a failure of this kind."""
    return _CODES.get(kind, FAILED)
