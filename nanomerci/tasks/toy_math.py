"""toy_math: sums of three-digit numbers, worked out column by column by a tiny model, graded by the
mathematics grader.

Every sum can be worked out in a common way that is only sometimes correct (each column on its own,
carrying 0) and in a rare one that is always correct (carry what the column before left over). On a
third of the questions, the hard ones, the common way fails. Half of the questions say "+ 1", so the
model knows columns of three digits. In the SFT warm-start data 5 % of demonstrations carry and 40 %
have one wrong digit: something easy to learn (the digits) and something to discover (the carry), as
in tasks/toy_sql.py.

Every token is a word of the vocabulary, and digits are words:   what is 1 4 7 + 2 8 5 ?
    plan columns 7 + 5 + 0 = 1 2 ; 4 + 8 + 0 = 1 2 ; 1 + 2 + 0 = 0 3 ; so \\boxed{ 3 2 2 }  (common)
    plan carry   7 + 5 + 0 = 1 2 ; 4 + 8 + 1 = 1 3 ; 1 + 2 + 1 = 0 4 ; so \\boxed{ 4 3 2 }  (rare)
"""

import random
import re
from dataclasses import dataclass

from nanomerci.tasks import math

RARE = 0.05  # share of demonstrations that carry
WRONG = 0.4  # share of demonstrations with a wrong digit
HARD = 1 / 3  # share of hard questions
DIGITS, TRAIN, TEST = 3, 4000, 400
PLAN = {False: "columns", True: "carry"}


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str
    a: int
    b: int
    more: int  # 0 or 1: the third summand
    hard: bool  # the common way gives the wrong sum


def work(a, b, more, carry, slip=None):
    """The worked response, and its result. slip: the column (0 = units) in which a digit of `a` is
    misread as the next one.
    """
    columns, digits, over = [], [], more
    for i in range(DIGITS):
        x, y = a // 10**i % 10, b // 10**i % 10
        x = (x + 1) % 10 if i == slip else x
        tens, units = divmod(x + y + over, 10)
        columns.append(f"{x} + {y} + {over} = {tens} {units} ;")
        digits.append(units)
        over = tens if carry else 0
    digits = " ".join(map(str, [tens, *reversed(digits)] if tens else digits[::-1]))
    text = f"plan {PLAN[carry]} {' '.join(columns)} so \\boxed{{ {digits} }}"
    return text, int(digits.replace(" ", ""))


def joined(text):
    """Digits are words here: without the spaces between them they are numbers."""
    return re.sub(r"(?<=\d) (?=\d)", "", text)


class ToyMath(math.Math):
    """Problems and grader; and what only a task for the tiny model has: words, demonstrations."""

    words = [*"0123456789", *"what is + = ? ; so } plan columns carry".split(), "\\boxed{"]

    def __init__(self):
        rng, kept = random.Random(13), {True: {}, False: {}}
        hard_ones = round((TRAIN + TEST) * HARD)
        wanted = {True: hard_ones, False: TRAIN + TEST - hard_ones}
        while any(len(kept[hard]) < wanted[hard] for hard in kept):
            a, b = (rng.randrange(10 ** (DIGITS - 1), 10**DIGITS) for _ in range(2))
            more = rng.randrange(2)
            total = a + b + more
            hard = work(a, b, more, carry=False)[1] != total
            if len(kept[hard]) < wanted[hard]:
                spaced = " + ".join([" ".join(str(a)), " ".join(str(b))] + ["1"] * more)
                name, asked = f"toy_math/{a}+{b}+{more}", f"what is {spaced} ?"
                kept[hard][name] = Problem(name, asked, str(total), a, b, more, hard)
        problems = [problem for some in kept.values() for problem in some.values()]
        problems = rng.sample(problems, len(problems))
        self.test, self.train = problems[:TEST], problems[TEST:]

    def demonstration(self, rng):
        """(prompt, response) for the SFT warm start: mostly the common way, often a wrong digit."""
        problem = rng.choice(self.train)
        slip = rng.randrange(DIGITS) if rng.random() < WRONG else None
        text, _ = work(problem.a, problem.b, problem.more, rng.random() < RARE, slip)
        return problem.prompt, text

    def job(self, problem, text):
        return math.grade, problem.gold, joined(text)

    def answer(self, text):
        return math.answer(joined(text))

    def rare(self, problem, text):
        """Whether a response carries, whatever it calls its plan (the experiments count it)."""
        return re.search(r"= 1 \d ; \d \+ \d \+ 1 ", text) is not None


def load(c):
    return ToyMath()
