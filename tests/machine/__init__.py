"""A world as a state machine: real sockets in several namespaces, and a plain model that says who must be alive.

`SOCKLB_PROFILE=deep pytest tests/machine` takes more than 100,000 steps.
"""
