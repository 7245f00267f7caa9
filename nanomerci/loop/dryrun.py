"""Moved to cost.py; this file goes once train.py calls cost.show."""

from nanomerci.loop.cost import show  # noqa: F401
