"""What it costs, as ratios measured side by side in one run: `tox -e bench`, or `python -m tests.benchmarks`."""
