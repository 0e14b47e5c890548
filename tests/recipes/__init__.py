"""Small programs to copy, each with its test. The documentation includes both files."""
