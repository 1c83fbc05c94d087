"""Mutation testing: cosmic-ray breaks the package in one place at a time, and the tests have to notice."""
