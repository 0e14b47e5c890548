"""Benchmarks. Each module answers one question, and is run by a nox session or with ``python -m``."""
