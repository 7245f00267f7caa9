"""Tasks, one file each: where prompts come from, how responses are graded, which text is noise.

`--task NAME` is the file NAME.py of this folder, `--task NAME:ARGUMENT` gives it an argument, and
`--task FILE.py` is a file of one's own. Such a file has `load(config) -> Task`. Graders run in
worker processes, which import this package too: nothing heavy at the top.
"""

import os
from importlib import import_module
from itertools import compress
from pathlib import Path

from nanomerci.runtime.config import UserError, closest
from nanomerci.runtime.plugins import load_file

# problems held back where no test set is named: a tenth of the data, at most so many
HELD_OUT = 500


class Task:
    """train, test: lists of problems, each with .id and .prompt. A task for the tiny model also has
    `words`, its vocabulary, and `demonstration(rng) -> (prompt, response)` for the SFT warm start.
    """

    def __init__(self, train=(), test=()):
        self.train, self.test = list(train), list(test)

    def job(self, problem, text):
        """-> (function, *arguments), run in a worker of graders.pool.Pool; returns a Grade."""
        raise NotImplementedError

    def answer(self, text):
        """The final answer in a response, or None."""
        return text

    def noise(self, problem, text):
        """[(start, end), ...]: characters of a response that have nothing to do with the task."""
        return []


def names():
    """Of the tasks in this folder."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(path.stem for path in files if path.stem not in ("own", "data"))


def load(c):
    """--task -> the task, without training problems that are held out. With --eval_split tune its
    test is a part of the training problems, on which nobody trains then: for choosing settings on
    other problems than those that will judge them.
    """
    task = make(c)
    if not task.test:
        cut = min(HELD_OUT, -(-len(task.train) // 10))
        task.test, task.train = task.train[:cut], task.train[cut:]
    asked = {p.prompt for p in task.test}
    task.train = [p for p in task.train if p.prompt not in asked]
    if not task.train:
        raise UserError(
            f"--train_data {c.train_data}: nothing is left to train on; every prompt is held out"
        )
    if c.eval_split == "tune":
        cut = min(len(task.test), len(task.train) // 4)
        task.test, task.train = task.train[:cut], task.train[cut:]
    return task


def make(c):
    """The task as its file makes it."""
    name = "own" if c.reward else c.task.partition(":")[0]
    if name.endswith(".py"):
        module = load_file(name, "task")
    elif name in (*names(), "own"):
        module = import_module(f"{__name__}.{name}")
    else:
        raise UserError(
            f"--task {c.task}: unknown{closest(name, names())} Choose from {', '.join(names())}, "
            "or FILE.py"
        )
    try:
        return module.load(c)
    except (ValueError, OSError) as error:  # the loaders' way to say what is wrong with the data
        raise UserError(f"--task {c.task}: {str(error).splitlines()[0]}") from error


def cache_folder():
    """Where warm starts and what gold queries gave are kept between runs."""
    return Path(os.environ.get("NANOMERCI_CACHE") or Path.home() / ".cache" / "nanomerci")


def needed(c):
    if not c.train_data:
        raise UserError(f"--task {c.task}: needs --train_data, the name or place of a data set")
    return c.train_data


def fit(task, length, limit, tests):
    """Leave out problems whose prompt is longer than `limit` tokens (0: none). -> tokens of the
    longest prompt that stays, and how many went. length(problem) -> tokens; of the held-out
    problems the first `tests` count.
    """
    longest, left = 0, 0
    for name, problems in (("train", task.train), ("test", task.test[:tests])):
        lengths = [length(p) for p in problems]
        fits = [not limit or tokens <= limit for tokens in lengths]
        if problems and not any(fits):
            raise UserError(
                f"--max_prompt_tokens {limit}: every {name} prompt is longer; the shortest has "
                f"{min(lengths)} tokens"
            )
        if not all(fits):
            setattr(task, name, list(compress(problems, fits)))
        left += fits.count(False)
        longest = max(longest, *compress(lengths, fits), 0)
    return longest, left


def pick(problems, numbers, seed):
    """The problems at these positions of the endless stream that goes through all of them, each
    time in a new order: a function of the position alone, so a resumed run goes on where it was.
    """
    import torch

    from nanomerci.address import address

    orders = {}
    for epoch in {n // len(problems) for n in numbers}:
        place_N = address("order", seed, epoch, torch.arange(len(problems)))
        orders[epoch] = place_N.argsort().tolist()
    return [problems[orders[n // len(problems)][n % len(problems)]] for n in numbers]
