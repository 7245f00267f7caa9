"""Tasks: where prompts come from, how answers are graded, which text is noise.

A task has   train, test     lists of problems, each with .id and .prompt (what the user asks)
             job(problem, text) -> (function, *arguments) that returns a grading.Grade, run in a worker of grading.Pool
             answer(text) -> the final answer in a response, or None
             noise(problem, text) -> [(start, end), ...] characters of a response that have nothing to do with the task
and, if the tiny model is to learn it, `words` and `demonstration(rng)` (see tasks/toy.py).

The workers import this package too: nothing heavy at the top.
"""

import sqlite3
from pathlib import Path

from nanomerci.runtime.config import UserError, closest

BUILT_IN = ("toy_sql", "toy_sql_chatty", "toy_math", "arithmetic")
# problems held back for evaluation where no test set is named: a tenth of the data, at most so many
HELD_OUT = 500


def load(c, cache):
    """--task -> the task. With --eval_split tune its test is a part of the training problems, on
    which nobody trains then: for choosing settings on other problems than those that will judge
    them.
    """
    task = _make(c, cache)
    if c.eval_split == "tune":
        cut = min(len(task.test), len(task.train) // 4)
        task.test, task.train = task.train[:cut], task.train[cut:]
    return task


def _make(c, cache):
    if c.task in ("toy_sql", "toy_sql_chatty"):
        from nanomerci.tasks import toy_sql

        try:
            return (toy_sql.ToySQL if c.task == "toy_sql" else toy_sql.ToySQLChatty)(cache)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the cache {cache}: {c.task}'s database cannot be written there ({error}); "
                "make room, or set "
                "NANOMERCI_CACHE to a folder you may write to"
            ) from error
    if c.task == "toy_math":
        from nanomerci.tasks.toy_math import ToyMath

        return ToyMath()
    if c.task == "arithmetic":
        from nanomerci.tasks.arithmetic import Arithmetic

        return Arithmetic()
    makers = {"math": _math, "sql": _sql, "reasoning_gym": _gym}
    kind, _, name = c.task.partition(":")
    if kind not in makers or bool(name) != (kind == "reasoning_gym"):
        names = (*BUILT_IN, "math", "sql", "reasoning_gym:NAME")
        raise UserError(
            f"--task {c.task}: unknown{closest(c.task, names)} Wanted one of {', '.join(names)}"
        )
    try:
        task = makers[kind](c)
    except (ValueError, OSError) as error:  # the loaders' way to say what is wrong with the data
        raise UserError(f"--task {c.task}: {str(error).splitlines()[0]}") from error
    if not task.test:
        cut = min(HELD_OUT, -(-len(task.train) // 10))
        task.test, task.train = task.train[:cut], task.train[cut:]
    asked = {p.prompt for p in task.test}
    task.train = [
        p for p in task.train if p.prompt not in asked
    ]  # never train on a question of the test
    if not task.train:
        raise UserError(
            f"--train_data {c.train_data}: nothing is left to train on; every question is held out"
        )
    return task


def _math(c):
    from nanomerci.tasks import math

    columns = [name.strip() or None for name in c.columns.split(",")] if c.columns else [None, None]
    if len(columns) != 2:
        raise UserError(f"--columns {c.columns}: wanted two names, QUESTION,ANSWER")
    read = lambda name, *names: math.load(name, _folder(c, name), *names) if name else []
    return math.Task(read(_needed(c), *columns), read(c.test_data))


def _sql(c):
    from nanomerci.tasks import sql

    place = lambda name: Path(_folder(c, name) or ".") / name
    train, test = place(_needed(c)), place(c.test_data or c.train_data)
    options = c.sql_match, c.partial_credit, c.perturbed_copies, c.query_seconds
    return sql.Task(sql.load(train, "train"), sql.load(test, "dev"), *options)


def _gym(c):
    from nanomerci.tasks import reasoning_gym

    name = c.task.partition(":")[2]
    return reasoning_gym.Task(
        reasoning_gym.load(name, 2000, seed=0), reasoning_gym.load(name, 200, seed=1)
    )


def _needed(c):
    if not c.train_data:
        raise UserError(f"--task {c.task}: wants --train_data, the name or place of a data set")
    return c.train_data


def _folder(c, name):
    """--data_folder, for a name that is not a path of its own."""
    return None if not c.data_folder or Path(name).exists() else c.data_folder


def held_out(name, cache, data_folder="", limit=None):
    """`sample.py --eval NAME` -> task whose .test are the problems to ask, and the paper's number
    of samples a problem.

    NAME: a built-in task, a set of tasks/math.py, a hub id, a file of problems, a Spider or BIRD
    folder, reasoning_gym:NAME.
    """
    from nanomerci.runtime.config import Config
    from nanomerci.tasks import math, sql

    if name in BUILT_IN or name.startswith("reasoning_gym:"):
        return load(Config(task=name), cache), 16
    place = Path(data_folder or ".") / name
    try:
        if any(place.glob("dev*")):
            return sql.Task(
                test=sql.load(place, "dev"),
                match="spider" if (place / "database").is_dir() else "bird",
            ), 16
        if name not in math.SOURCES and not place.exists() and "/" not in name:
            known = (*BUILT_IN, *math.SOURCES)
            raise ValueError(
                f"unknown{closest(name, known)} Wanted a path, or one of {', '.join(known)}"
            )
        folder = data_folder if data_folder and not Path(name).exists() else None
        return math.Task(test=math.load(name, folder, limit=limit)), getattr(
            math.SOURCES.get(name), "k", 16
        )
    except (ValueError, OSError) as error:
        raise UserError(f"--eval {name}: {str(error).splitlines()[0]}") from error


def fit(task, length, limit, tests):
    """Leave out problems whose prompt is longer than `limit` tokens (0: none). -> tokens of the
    longest prompt that stays, and how many went. length(problem) -> tokens; of the held-out
    problems the first `tests` count.
    """
    longest, left = 0, 0
    for name, problems in (("train", task.train), ("test", task.test[:tests])):
        lengths = [length(p) for p in problems]
        if limit and max(lengths) > limit:
            stay = [p for p, tokens in zip(problems, lengths) if tokens <= limit]
            left += len(problems) - len(stay)
            if not stay:
                raise UserError(
                    f"--max_prompt_tokens {limit}: every {name} prompt is longer; the shortest has "
                    f"{min(lengths)} tokens"
                )
            setattr(task, name, stay)
        longest = max(longest, *(n for n in lengths if not limit or n <= limit), 0)
    return longest, left


def pick(problems, numbers, seed):
    """The problems at these positions of the endless stream that goes through all of them, each
    time in a new order: a function of the position alone, so a resumed run goes on where it was.
    """
    import torch

    from nanomerci.address import address

    orders = {}
    for epoch in {n // len(problems) for n in numbers}:
        orders[epoch] = (
            address("order", seed, epoch, torch.arange(len(problems))).argsort().tolist()
        )
    return [problems[orders[n // len(problems)][n % len(problems)]] for n in numbers]
