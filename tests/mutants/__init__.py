"""Whether the tests notice a wrong package: it is broken in one small place after another (python -m tests.mutants)."""
