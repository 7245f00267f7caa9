"""products: a product answered at once or worked out, for a pretrained model that is first shown
both (lab/smollm2_products.py).

    What is 7 times 46?      322                                                        (common)
                             7 times 40 is 280, 7 times 6 is 42, 280 plus 42 is 322     (rare)

A small model is seldom correct at once and mostly when it works the product out. All answers of the
SFT demonstrations are correct. Half of their questions end with "Work it out." and are worked out,
so that the model can; of the others --rare_share are, so that it seldom does. RL and evaluation ask
other products than SFT, without these words.
"""

import random
import zlib
from dataclasses import dataclass

from nanomerci.tasks.arithmetic import Arithmetic


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str
    a: int
    b: int


def worked(a, b):
    tens, units = b // 10 * 10, b % 10
    parts = f"{a} times {tens} is {a * tens}, {a} times {units} is {a * units}"
    return f"{parts}, {a * tens} plus {a * units} is {a * b}"


class Products(Arithmetic):
    """A digit from 2 to 9 times a number of two digits: one question of five is held out, two are
    for SFT alone.
    """

    def __init__(self, rare_share):
        """rare_share: of the demonstrations that do not ask for it, how many are worked out."""
        self.rare_share, parts = rare_share, ([], [], [], [], [])
        pairs = [(a, b) for b in range(11, 100) for a in range(2, 10) if b % 10]
        for a, b in random.Random(17).sample(pairs, len(pairs)):
            asked = f"What is {a} times {b}?"
            problem = Problem(f"products/{a}*{b}", asked, str(a * b), a, b)
            parts[zlib.crc32(asked.encode()) % 5].append(problem)
        self.test, self.shown, self.train = parts[0], parts[1] + parts[2], parts[3] + parts[4]

    def demonstration(self, rng):
        problem = rng.choice(self.shown)
        in_steps = worked(problem.a, problem.b)
        if rng.random() < 0.5:
            return f"{problem.prompt} Work it out.", in_steps
        return problem.prompt, in_steps if rng.random() < self.rare_share else problem.gold

    def rare(self, problem, text):
        """Whether a response works the product out, correctly or not (the experiments count it)."""
        return " times " in text and " plus " in text


def load(c):
    return Products(c.rare_share)
