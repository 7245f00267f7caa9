"""pass@k and its interval against published values and enumeration."""

import itertools
import math
import re

import pytest
import torch

from nanomerci.loop.evaluate import bootstrap, ks, pass_at_k, summary
from nanomerci.tasks import pick
from nanomerci.tasks.arithmetic import Arithmetic, grade
from nanomerci.tasks.graders.pool import Grade


@pytest.mark.parametrize("n, c", [(5, 0), (5, 2), (5, 5), (6, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k).item() == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_equals_the_product_form_of_chen_et_al():
    """HumanEval's reference: 1 - prod_{i = n-c+1..n} (1 - k / i); also where binomials overflow."""
    for n, c, k in ((200, 13, 100), (256, 3, 64), (1000, 1, 10)):
        product = math.prod(1 - k / i for i in range(n - c + 1, n + 1))
        assert pass_at_k(n, c, k).item() == pytest.approx(1 - product, rel=1e-6)
    with pytest.raises(ValueError, match="needs at least that many samples"):
        pass_at_k(4, 1, 8)


def test_bootstrap_interval_has_the_width_of_the_normal_one():
    value_P = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    low, high = bootstrap(value_P, draws=4000)
    half = 1.96 * value_P.std(correction=0).item() / 20
    assert low < value_P.mean() < high and (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_summary():
    right_PK = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    s = summary(right_PK, torch.tensor([True, True, False]))
    assert s["eval/mean@4"] == pytest.approx(5 / 12)
    assert s["eval/pass@2"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert s["eval/pass@4"] == pytest.approx(2 / 3) and s["eval/greedy"] == pytest.approx(2 / 3)
    assert (s["eval/solved"], s["eval/problems"]) == (2, 3) and ks(6) == [1, 2, 4, 6]


def test_the_stream_of_problems_goes_through_all_of_them_each_time_in_another_order():
    items = list(range(10))
    stream = pick(items, range(30), seed=1)
    epochs = [stream[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == items for e in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert pick(items, range(7, 15), seed=1) == stream[7:15]
    assert pick(items, range(10), seed=2) != epochs[0]


@pytest.mark.parametrize(
    "gold, text, outcome",
    [
        ("112", "112", "right"),
        ("112", "27 + 85 = 112.", "right"),
        ("112", "The answer is **112**!", "right"),
        ("1112", "1,112", "right"),
        ("-3", "5 - 8 = -3", "right"),
        ("-3", "−3", "right"),
        ("3", "-3", "wrong"),
        ("112", "112.5", "unparsable"),
        ("112", "1120", "wrong"),
        ("112", "112 or 113", "wrong"),
        ("112", "no idea", "unparsable"),
        ("112", "", "unparsable"),
        ("112", "٣١١", "unparsable"),
        ("112", "9" * 10**6, "wrong"),
        ("112", "abc112", "unparsable"),
        ("112", "112" + chr(0), "right"),
        ("0", "0x0", "unparsable"),
    ],
)
def test_arithmetic_grader(gold, text, outcome):
    assert grade(gold, text) == Grade(float(outcome == "right"), outcome)


def share(problems, pattern):
    return sum(bool(re.search(pattern, p.prompt)) for p in problems) / len(problems)


def test_arithmetic_problems():
    task = Arithmetic()
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.test}
    for problem in task.train[:300]:
        question = problem.prompt.removeprefix("What is ").split("?")[0]
        a, sign, b = question.replace(" times ", " * ").split()
        results = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
        assert int(problem.gold) == results[sign]
    for problems, slack in ((task.train, 0.05), (task.test[:100], 0.2)):
        assert abs(share(problems, r"\+") - 0.5) < slack
        assert min(share(problems, " - "), share(problems, "times")) > 0.25 - slack
        # one digit by one: what a small model can begin with
        assert share(problems, r"is \d (\+|-|times) \d\?") > 0.25
