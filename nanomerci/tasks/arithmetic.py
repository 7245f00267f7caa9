"""arithmetic: sums, differences and products for a real pretrained model, in words, no download.

"What is 27 + 85? ..." with numbers of one (half of them), two or three digits; products are of one digit by one or two. Half the
questions are sums. The training problems and the held-out ones are different pairs of numbers. Graded by the last integer of
the answer, so a model may explain itself first.
"""
import random
import re
from dataclasses import dataclass

from nanomerci.grading import Grade

TRAIN, TEST = 4000, 400
ASK = {"+": "What is {} + {}?", "-": "What is {} - {}?", "*": "What is {} times {}?"}


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str


def answer(text):
    """The last integer, commas between thousands left out; None if there is none."""
    found = re.findall(r"(?<![\w.])[-−]?\d[\d,]*(?![\w]|\.\d)", text[-2000:], re.ASCII)
    return found[-1].replace("−", "-").replace(",", "") if found else None


def grade(gold, text):
    """Right if the last integer of the answer is the gold one. More than 18 digits are wrong unread."""
    last = answer(text)
    if last is None:
        return Grade(0.0, "unparsable")
    return Grade(1.0, "right") if len(last) <= 18 and int(last) == int(gold) else Grade(0.0, "wrong")


class Arithmetic:
    def __init__(self):
        rng, seen = random.Random(5), {}
        while len(seen) < TRAIN + TEST:
            sign = rng.choice("++-*")
            a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in rng.choices((1, 2, 3), (0.5, 0.35, 0.15), k=2))
            if sign == "*":
                a, b = a % 9 + 1, b % 100
            gold = {"+": a + b, "-": a - b, "*": a * b}[sign]
            question = ASK[sign].format(a, b)
            seen[question] = Problem(f"arithmetic/{a}{sign}{b}", f"{question} Answer with just the number.", str(gold))
        self.test, self.train = list(seen.values())[:TEST], list(seen.values())[TEST:]

    def job(self, problem, text):
        return grade, problem.gold, text

    def answer(self, text):
        return answer(text)

    def noise(self, problem, text):
        return []
