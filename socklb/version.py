# SPDX-License-Identifier: MIT
"""The version, in a place that packaging can read without importing the rest."""

__version__ = "0.1.0"
