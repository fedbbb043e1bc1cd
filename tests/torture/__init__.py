"""Stress tests of the package: `make torture`, or `python -m tests.torture GOAL ...`."""
