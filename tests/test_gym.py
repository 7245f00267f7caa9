"""reasoning-gym: what may reach a scorer that calls eval, and, where the package is installed, its
tasks through the pool.
"""

import sys

import pytest

from nanomerci import tasks
from nanomerci.runtime.config import Config, UserError
from nanomerci.tasks import reasoning_gym
from nanomerci.tasks.graders.pool import Pool


@pytest.mark.parametrize(
    "text",
    [
        "(1 + 2) * 3",
        "[[1, 2], [3, 4]]",
        "-5",
        "x**2 + 3*x + C",
        "sqrt(2) * sin(x)",
        "Q _ _\n_ Q _",
        "1 2 3",
        "A B",
        "2*exp(3*x)",
        '"abc"',
    ],
)
def test_harmless(text):
    assert reasoning_gym.harmless(text)


@pytest.mark.parametrize(
    "text",
    [
        "open('x','w')",
        "__import__('os')",
        "().__class__",
        "x.y",
        "[f(1)]",
        "(lambda: 0)()",
        "exec('1')",
        "exit()",
        "1 if f() else 2",
        "f'{x}'",
        "[x for x in y]",
        "{1: 2}",
        "print",
        "5! + exec('1')",
        "x = open('x')",
        "\uff4f\uff50\uff45\uff4e('x')",
        "(open)('x')",
        "1 " * 2000,
        "import os",
        "a; open ('x')",
        "sqrt.__globals__",
        "abs(open)",
        "*open('x')",
    ],
)
def test_not_harmless(text):
    assert not reasoning_gym.harmless(text)


def test_answer():
    assert reasoning_gym.answer("<answer>1</answer> no <answer> 2 </answer>") == "2"
    assert reasoning_gym.answer("\\boxed{3}") == "3" and reasoning_gym.answer("4") is None


@pytest.mark.parametrize("name", ["basic_arithmetic", "countdown", "n_queens", "spiral_matrix"])
def test_its_scorers_run_in_the_pool(name):
    pytest.importorskip(
        "reasoning_gym", reason="the optional package reasoning-gym is not installed"
    )
    problems = reasoning_gym.read_problems(name, size=10)
    assert reasoning_gym.read_problems(name, size=10) == problems
    assert reasoning_gym.read_problems(name, size=10, seed=1) != problems
    task = reasoning_gym.ReasoningGym(problems)
    with Pool(workers=2, deadline=10.0) as pool:
        correct = [f"<answer>{problem.gold}</answer>" for problem in problems]
        jobs = [task.job(problem, text) for problem, text in zip(problems, correct, strict=True)]
        assert {grade.outcome for grade in pool.grade(jobs)} == {"right"}, pool.last_error
        jobs = [
            task.job(problems[0], f"<answer>{text}</answer>")
            for text in ("1000003", "open('pwned', 'w')")
        ]
        wrong, hostile = pool.grade(jobs)
        assert wrong.outcome == "wrong" and hostile.reward == 0 and hostile.outcome != "right"


def test_what_a_user_gets_wrong_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="pip install reasoning-gym"):
        reasoning_gym.read_problems("countdown")
    with pytest.raises(UserError, match="expected reasoning_gym:NAME"):
        tasks.load(Config(task="reasoning_gym"))
    with pytest.raises(UserError, match="--task reasoning_gym:countdown: .*pip install"):
        tasks.load(Config(task="reasoning_gym:countdown"))
