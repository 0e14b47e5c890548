"""Small programs to copy, each with the test that runs it; the documentation shows both from here."""
