"""Helpers that the tests and benchmarks share, and that users may find handy for their own."""
