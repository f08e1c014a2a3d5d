"""Writes what a finished run leaves for people (report.html, graphs) and for programs (JSON, CSV)."""

from trainer.report.write import write_report

__all__ = ["write_report"]
