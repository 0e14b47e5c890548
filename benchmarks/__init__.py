"""Benchmarks. Each module answers one question; the noxfile has a session for each."""
