"""
The sources of the documentation, which `nox -s docs` builds.

They are below `tests` because `tests/project/test_docs.py` runs their examples.
"""
