"""Questions answered in SQL: prompts, data, the hardened executor, the comparisons."""
import sqlite3
from dataclasses import dataclass
from functools import lru_cache

from nanomerci.grading import Grade


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str
    database: str


class Script(str):
    """A database as the SQL script that creates it, in memory; anywhere a path of a database is wanted."""


def answer(text):
    start = text.rfind("```sql")
    return text[start + 6:].split("```")[0].strip() or None if start >= 0 else None


@lru_cache(64)
def _connection(database):
    if isinstance(database, Script):
        connection = sqlite3.connect(":memory:")
        connection.executescript(database)
        return connection
    return sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)


def run(database, query):
    return _connection(database).execute(query).fetchall()


def grade(database, gold_sql, text, match="bird"):
    query = answer(text)
    return Grade(0.0, "unparsable") if query is None else grade_query(database, gold_sql, query, match)


def grade_query(database, gold_sql, query, match="bird"):
    try:
        same = set(run(database, gold_sql)) == set(run(database, query))
    except sqlite3.Error:
        return Grade(0.0, "wrong")
    return Grade(1.0, "right") if same else Grade(0.0, "wrong")


class Task:
    def __init__(self, train=(), test=(), match="bird"):
        self.train, self.test, self.match = list(train), list(test), match

    def noise(self, problem, text):
        return []

    def job(self, problem, text):
        return grade, problem.database, problem.gold, text, self.match

    def answer(self, text):
        return answer(text)
