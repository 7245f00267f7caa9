"""A task a random model can sometimes do: use the word 'a' exactly once. Grades in microseconds."""

from dataclasses import dataclass

from nanomerci.tasks.graders.pool import Grade

WORDS = "a b c d e f g h".split()


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str


def grade(text):
    return Grade(1.0, "right") if text.split().count("a") == 1 else Grade(0.0, "wrong")


class Once:
    train = [
        Problem(f"train/{i}", " ".join(WORDS[(i >> k) % 8] for k in (0, 1, 2))) for i in range(40)
    ]
    test = [Problem(f"test/{i}", f"{WORDS[i]} {WORDS[i]}") for i in range(8)]

    def job(self, problem, text):
        return grade, text

    def answer(self, text):
        return str(text.split().count("a"))

    def noise(self, problem, text):
        return [(text.index("h"), len(text))] if "h" in text else []
