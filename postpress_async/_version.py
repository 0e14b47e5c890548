"""The version, which the build and the ``User-Agent`` read here."""

__version__ = "0.1.0"
