"""What train.py says of itself: --help in the sections of config.py, --list. No torch is needed for
it, so it comes at once.
"""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from pathlib import Path

from nanomerci import tasks
from nanomerci.runtime import config


def sections():
    """[(section, [(option, meaning)])] as the comments and docstrings of Config have them."""
    found = []
    entry = r'^    (?:# ---- ([^\n]*)|(\w+): [^\n]*\n    """(.*?)""")$'
    for title, name, meaning in re.findall(entry, inspect.getsource(config.Config), re.M | re.S):
        if title:
            found.append((title, []))
        else:
            found[-1][1].append((name, " ".join(meaning.split())))
    return found


def wrapped(head, text, indent):
    """One entry: its name, and its text beside it or, where the name is too long, below."""
    width = min(shutil.get_terminal_size((110, 0)).columns, 130)
    lines = textwrap.wrap(text, max(30, width - indent), break_on_hyphens=False) or [""]
    start = [f"{head:{indent}s}{lines.pop(0)}"] if len(head) < indent else [head]
    return "\n".join(start + [" " * indent + line for line in lines])


def help(recipe, defaults):
    """Every option with meaning, unit and default. recipe: whose defaults they are."""
    types = {f.name: f.type for f in dataclasses.fields(config.Config)}
    plain = {bool: "True|False", str: "TEXT", int: "INT", float: "FLOAT"}
    kind = lambda type: plain.get(type) or "|".join(type.__args__)
    lines = [
        "usage: python train.py [RECIPE] [--option value ...]",
        "",
        f"RECIPE: {', '.join(config.recipes())}, or a YAML file; --list says what each is for.",
        f"The defaults below are those of {recipe}.",
    ]
    for title, options in sections():
        lines += ["", title]
        for name, meaning in options:
            value = getattr(defaults, name)
            shown = '""' if value == "" else value
            lines.append(
                wrapped(f"  --{name} {kind(types[name])}", f"{meaning} (default {shown})", 34)
            )
    return "\n".join(lines)


def listing():
    """Recipes, tasks, bonuses and algorithms, a line each."""
    first = lambda path: ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]
    meaning = {name: text for _, options in sections() for name, text in options}
    lines = ["Recipes (python train.py RECIPE):"]
    for name in config.recipes():
        about = (config.RECIPES / f"{name}.yaml").read_text().split("\n")[0].lstrip("# ")
        lines.append(wrapped(f"  {name}", about, 26))
    lines += ["", "Tasks (--task):"]
    for path in sorted((Path(tasks.__file__).parent).glob("[a-z]*.py")):
        name, colon, about = first(path).partition(": ")
        if colon and re.fullmatch(r"[\w:]+", name):
            lines.append(wrapped(f"  {name}", about, 26))
    lines.append(wrapped("  math, sql", meaning["train_data"], 26))
    for option in ("bonus", "algo"):
        lines += [
            "",
            f"--{option} {'|'.join(config.Config.__dataclass_fields__[option].type.__args__)}",
            wrapped("", meaning[option], 26),
        ]
    return "\n".join(lines)
