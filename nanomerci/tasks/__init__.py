"""Tasks: where prompts come from, how answers are graded, which text is noise.

A task has   train, test     lists of problems, each with .id and .prompt (what the user asks)
             job(problem, text) -> (function, *arguments) that returns a grading.Grade, run in a worker of grading.Pool
             noise(problem, text) -> [(start, end), ...] characters of a response that have nothing to do with the task
and, if the tiny model is to learn it, `words` and `demonstration(rng)` (see tasks/toy.py).
"""
import torch

from nanomerci.address import address
from nanomerci.config import UserError, closest

BUILT_IN = ("toy_sql", "arithmetic")


def load(c, cache):
    """--task -> the task."""
    if c.task == "toy_sql":
        from nanomerci.tasks.toy import ToySQL

        return ToySQL(cache)
    if c.task == "arithmetic":
        from nanomerci.tasks.arithmetic import Arithmetic

        return Arithmetic()
    raise UserError(f"--task {c.task}: unknown{closest(c.task, BUILT_IN)} Wanted one of {', '.join(BUILT_IN)}")


def pick(problems, cursor, count, seed):
    """Problems number cursor .. cursor + count - 1 of the endless stream that goes through all of them, each time in a new
    order: a function of the position alone, so a resumed run goes on where it was."""
    orders = {}
    for i in range(cursor, cursor + count):
        epoch, place = divmod(i, len(problems))
        if epoch not in orders:
            orders[epoch] = address("order", seed, epoch, torch.arange(len(problems))).argsort().tolist()
        yield problems[orders[epoch][place]]
