# SPDX-License-Identifier: MIT
"""Find, destroy, probe: the work on the sockets of one namespace or of many."""
