"""What type checkers see of the package: `python -m tests.types` runs mypy and pyright over right and wrong uses."""
