"""A reward of your own: --reward FILE.py:FUNCTION with --train_data of any file or hub id.

The function is called as FUNCTION(prompt, response, record) with the record of the data, in a
worker that can be killed, and returns a number: 1.0 is correct, anything between 0 and 1 is partial
credit. An exception, NaN, or a number outside 0..1 is the outcome "error" and the reward 0.
"""

from dataclasses import dataclass
from functools import lru_cache

from nanomerci.runtime.plugins import load_name
from nanomerci.tasks import Task, data, needed
from nanomerci.tasks.graders.pool import Grade


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    record: dict


class Own(Task):
    def __init__(self, reward, train, test):
        super().__init__(train, test)
        self.reward = reward

    def job(self, problem, text):
        return grade, self.reward, problem.prompt, text, problem.record


@lru_cache(1)
def function(reward):
    return load_name(reward, "reward")


def grade(reward, prompt, response, record):
    value = float(function(reward)(prompt, response, record))
    if not 0 <= value <= 1:  # NaN is neither
        raise ValueError(f"--reward {reward} returned {value}; expected 0 to 1")
    return Grade(value, "right" if value == 1 else "wrong")


def load(c):
    """--train_data, --test_data: files, folders or hub ids; --columns QUESTION names the
    question.
    """
    function(c.reward)
    train, test = (problems(c, name) for name in (needed(c), c.test_data))
    return Own(c.reward, train, test)


def problems(c, name):
    """Every record must ask something: what else it holds is the reward's affair."""
    column = c.columns.partition(",")[0].strip() or None
    template = c.prompt_template or "{question}"
    found = []
    for i, record in enumerate(data.records(name, c.data_folder) if name else ()):
        where = f"{name}, record {i}"
        question = data.question(record, column, where).strip()
        found.append(Problem(f"{name}/{i}", template.replace("{question}", question), record))
    return found
