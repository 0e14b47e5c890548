"""
The sources of the documentation.

They are below `tests` because `tests/project/test_docs.py` runs their examples. The wheel does not contain
them. `nox -s docs` builds the site.
"""
