"""What the demo tells its user instead of a traceback."""


class DemoError(Exception):
    """One sentence: what is wrong and what to do."""
