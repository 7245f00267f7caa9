"""Functions and classes from files of one's own: FILE.py:NAME.

Such a file becomes a module whose name holds its path, and whose import is known wherever this
module has been imported. So what it defines can be sent to other processes like anything else.
"""

import sys
from importlib import import_module
from importlib.util import spec_from_file_location
from pathlib import Path

from nanomerci.runtime.config import UserError, closest

PREFIX = "nanomerci_file_"


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith(PREFIX):
            return spec_from_file_location(name, bytes.fromhex(name.removeprefix(PREFIX)).decode())


sys.meta_path.append(Finder)


def load_file(path, option):
    """-> the module that this .py file is. option: what named it, for messages."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"--{option} {path}: no such file")
    try:
        return import_module(PREFIX + str(path.resolve()).encode().hex())
    except Exception as error:  # whatever the file does
        raise UserError(f"--{option} {path}: {type(error).__name__}: {error}") from error


def load_name(place, option):
    """FILE.py:NAME -> what the file calls NAME."""
    file, colon, name = place.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(f"--{option} {place}: expected FILE.py:NAME")
    module = load_file(file, option)
    if not hasattr(module, name):
        raise UserError(f"--{option} {place}: the file has no {name}")
    return getattr(module, name)


def named(name, option, known, fits, wanted, place):
    """What `known` has under this name, or what a file has under FILE.py:NAME, if fits(it). wanted
    and place: what that has to be, and how it is given, for messages.
    """
    if ".py:" in name:
        found = load_name(name, option)
        if not fits(found):
            raise UserError(f"--{option} {name}: expected {wanted}")
        return found
    if name not in known:
        raise UserError(
            f"--{option} {name}: unknown{closest(name, known)} Choose from {', '.join(known)}, "
            f"or {place}"
        )
    return known[name]
