"""Measures servers over HTTP: ours alone (serve.py), and ours beside its peers (compare.py). Never part of a test."""
