# SPDX-License-Identifier: MIT
"""The reverse-NAT socket maps of Cilium: which service a socket was balanced from."""
