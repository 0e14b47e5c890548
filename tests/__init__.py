"""The tests; each file mirrors a module, and `conftest` has the doubles."""
