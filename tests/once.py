"""A task a random model can sometimes do: use the word 'a' exactly once. Grades in microseconds."""

from dataclasses import dataclass

from nanomerci.tasks import Task
from nanomerci.tasks.graders.pool import Grade

WORDS = "a b c d e f g h".split()


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str


def grade(text):
    return Grade(1.0, "right") if text.split().count("a") == 1 else Grade(0.0, "wrong")


class Once(Task):
    def __init__(self):
        asked = (f"{WORDS[i % 8]} {WORDS[(i >> 1) % 8]} {WORDS[(i >> 2) % 8]}" for i in range(40))
        held_out = (f"{word} {word}" for word in WORDS)
        super().__init__(
            [Problem(f"train/{i}", prompt) for i, prompt in enumerate(asked)],
            [Problem(f"test/{i}", prompt) for i, prompt in enumerate(held_out)],
        )

    def job(self, problem, text):
        return grade, text

    def answer(self, text):
        return str(text.split().count("a"))

    def noise(self, problem, text):
        return [(text.index("h"), len(text))] if "h" in text else []
