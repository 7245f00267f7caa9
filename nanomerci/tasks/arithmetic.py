"""arithmetic: sums, differences and products for a real pretrained model, in words, no download.

"What is 27 + 85? ..." with numbers of one (most of them), two or three digits; products are of one
digit by one or two. Half the questions are sums. One question of five is held out, by its text.
Graded by the last integer of the response, so a model may explain itself first.
"""

import random
import re
import zlib

from nanomerci.tasks import Task
from nanomerci.tasks.graders.pool import Grade
from nanomerci.tasks.math import Problem

TRAIN, TEST = 4000, 400
ASK = {"+": "What is {} + {}?", "-": "What is {} - {}?", "*": "What is {} times {}?"}


def answer(text):
    """The last integer, commas between thousands left out; None if there is none."""
    found = re.findall(r"(?<![\w.])[-−]?\d[\d,]*(?![\w]|\.\d)", text[-2000:], re.ASCII)
    return found[-1].replace("−", "-").replace(",", "") if found else None


def grade(gold, text):
    """Correct if the last integer of the response is the gold one; one of more than 18 digits is
    incorrect unread.
    """
    last = answer(text)
    if last is None:
        return Grade(0.0, "unparsable")
    if len(last) <= 18 and int(last) == int(gold):
        return Grade(1.0, "right")
    return Grade(0.0, "wrong")


class Arithmetic(Task):
    answer = staticmethod(answer)

    def __init__(self):
        rng, held_out, self.train = random.Random(5), {}, []
        while len(held_out) < TEST or len(self.train) < TRAIN:
            sign = rng.choice("++-*")
            sizes = rng.choices((1, 2, 3), (0.6, 0.35, 0.05), k=2)
            a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for digits in sizes)
            if sign == "*":
                a, b = a % 9 + 1, b % 100
            gold = {"+": a + b, "-": a - b, "*": a * b}[sign]
            question = ASK[sign].format(a, b)
            prompt = f"{question} Answer with just the number."
            problem = Problem(f"arithmetic/{a}{sign}{b}", prompt, str(gold))
            if zlib.crc32(question.encode()) % 5 == 0:
                held_out[question] = problem  # each once
            else:  # as often as it is drawn: there are few questions of one digit
                self.train.append(problem)
        self.test, self.train = list(held_out.values())[:TEST], self.train[:TRAIN]

    def job(self, problem, text):
        return grade, problem.gold, text


def load(c):
    return Arithmetic()
