"""Mathematics with a final answer: prompts, data, the grader."""
from dataclasses import dataclass

from nanomerci.grading import Grade


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str


def answer(text):
    """The final answer of a response, or None."""
    start = text.rfind("\\boxed{")
    return text[start + 7:].split("}")[0] if start >= 0 else None


def grade(gold, text):
    got = answer(text)
    if got is None:
        return Grade(0.0, "unparsable")
    return Grade(1.0, "right") if got == gold else Grade(0.0, "wrong")


class Task:
    def __init__(self, train=(), test=()):
        self.train, self.test = list(train), list(test)

    def noise(self, problem, text):
        return []

    def job(self, problem, text):
        return grade, problem.gold, text

    def answer(self, text):
        return answer(text)
