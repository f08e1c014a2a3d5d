"""The version of the software. A part of every answer's system_fingerprint."""

VERSION = "0.1.0"
