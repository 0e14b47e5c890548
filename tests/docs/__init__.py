"""
The documentation's sources. They stand with the tests because that is what runs them: `tests/test_docs.py`.

The wheel does not carry them; `nox -s docs` builds the site.
"""
