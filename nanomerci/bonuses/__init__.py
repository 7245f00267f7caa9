"""Exploration bonuses, one file each, picked by name: `--bonus cfn` is MERCI, the others are
baselines and controls. A file of one's own works too: `--bonus FILE.py:CLASS`.

A bonus says how novel each token of a response is, what that is worth to the response, and how it
changes the advantage; and it counts what was visited. What is not its own it inherits: see
nanomerci/bonuses/base.py.
"""

from importlib import import_module
from pkgutil import iter_modules

from nanomerci.bonuses.base import BONUSES, Bonus, Shaped, StateCounter, Visits, register

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["BONUSES", "Bonus", "Shaped", "StateCounter", "Visits", "register"]
