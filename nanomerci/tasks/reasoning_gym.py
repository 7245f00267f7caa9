"""reasoning_gym: about a hundred generated tasks with their own scorers, no download (`pip
install -e '.[gym]'`).

Some of its scorers hand the answer to Python's `eval` or to sympy's parser, which uses it. So an
answer to such a task must first be a harmless expression (no attribute, no call but of a known
function); and, like all grading, it runs in a worker.
"""

import ast
import inspect
import random
import re
from dataclasses import dataclass
from functools import lru_cache

from nanomerci.runtime.config import UserError
from nanomerci.tasks import Task, math
from nanomerci.tasks.graders.pool import Grade
from nanomerci.tasks.graders.worker import load as load_library

FORMAT = "\n\nThink step by step, then give the final answer between <answer> and </answer>."
CALLS = frozenset("sin cos tan asin acos atan sinh cosh tanh exp log ln sqrt pi E Abs abs".split())
HARMLESS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant)
HARMLESS += (ast.List, ast.Tuple, ast.expr_context)


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str
    place: tuple  # task name, seed, size, number: the worker generates the entry again


@lru_cache(16)
def _dataset(name, seed, size):
    return load_library("reasoning_gym").create_dataset(name, seed=seed, size=size)


def read_problems(name, size=1000, seed=0):
    """`size` problems of one reasoning-gym task, a function of the seed. ValueError of one line."""
    try:
        from reasoning_gym import factory
    except ImportError:
        raise ValueError(
            f"reasoning_gym:{name} needs the package reasoning-gym; pip install reasoning-gym"
        ) from None
    if name not in factory.DATASETS:
        known = ", ".join(sorted(factory.DATASETS))
        raise ValueError(f"reasoning_gym:{name}: no such task; reasoning_gym has {known}")
    state = random.getstate()  # a few generators draw from the global one
    data, problems = _dataset(name, seed, size), []
    for i in range(size):
        entry, place = data[i], (name, seed, size, i)
        prompt, gold = entry["question"] + FORMAT, str(entry["answer"])
        problems.append(Problem(f"{name}/{seed}/{i}", prompt, gold, place))
    random.setstate(state)
    return problems


def answer(text):
    """Between the last <answer> and its </answer>, else as in mathematics; or None."""
    _, tag, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0].strip() or None if tag else math.answer(text)


def grade(place, text):
    """reasoning-gym's score, 0 to 1, as the reward; "right" is a full score."""
    found = answer(text)
    if found is None:
        return Grade(0.0, "unparsable")
    data = _dataset(*place[:3])
    if _evaluates(type(getattr(data, "dataset", data))) and not harmless(found):
        return Grade(0.0, "unsafe")
    score = float(data.score_answer(answer=found, entry=data[place[3]]))
    return Grade(score, "right" if score >= 1 else "wrong")


@lru_cache(256)
def _evaluates(kind):
    source = inspect.getsource(inspect.getmodule(kind))
    return re.search(r"\b(eval|exec|parse_expr|sympify)\(", source) is not None


def harmless(text):
    """Can this reach `eval`? Literals, arithmetic, names, calls of CALLS. What is no expression
    must not look like a call.
    """
    if len(text) > 2000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return not re.search(r"[\w\])]\s*\(|\.\s*[^\W\d]|__|lambda|import", text)
    for node in nodes:
        if isinstance(node, ast.Name):
            fits = len(node.id) <= 2 or node.id in CALLS
        elif isinstance(node, ast.Call):
            fits = isinstance(node.func, ast.Name) and node.func.id in CALLS
        else:
            fits = isinstance(node, HARMLESS)
        if not fits:
            return False
    return True


class ReasoningGym(Task):
    answer = staticmethod(answer)

    def noise(self, problem, text):
        return math.repeated(text)

    def job(self, problem, text):
        return grade, problem.place, text


def load(c):
    """--task reasoning_gym:NAME -> ReasoningGym."""
    name = c.task.partition(":")[2]
    if not name:
        raise UserError("--task reasoning_gym: expected reasoning_gym:NAME, such as :countdown")
    return ReasoningGym(read_problems(name, 2000, seed=0), read_problems(name, 200, seed=1))
