"""Writes what a run leaves for people (report.html, graphs, the plan's page) and for programs (JSON, CSV)."""

from trainer.report.write import write_report

__all__ = ["write_report"]
