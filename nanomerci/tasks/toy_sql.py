"""toy_sql: questions about a small company, answered in SQL by a tiny model, graded by running the
SQL.

Every question template has a common idiom that is only sometimes correct (ORDER BY ... LIMIT 1
forgets ties, a JOIN repeats people, a plain SELECT repeats values, COUNT counts them) and a rare
one that is always correct (= (SELECT MAX ...), IN (SELECT ...), SELECT DISTINCT, COUNT(DISTINCT
...)). On a third of the questions, the hard ones, the common idiom fails. In the SFT warm-start
data 2 % of demonstrations (--rare_share) use the rare idiom and 40 % have one wrong condition. So
there is something easy to learn (the conditions) and something to discover: an idiom that earns no
reward until it has been tried.

A response reads   plan WORD ```sql select ... ```   and every token is a word of the vocabulary.
"""

import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, product

from nanomerci.tasks import Task, sql
from nanomerci.tasks.graders.sqlite import Script, open_database

WRONG = 0.4  # share of demonstrations with a wrong condition
HARD = 1 / 3  # share of hard questions
TEST = 400  # held-out questions; the rest is for training

DEPTS = "'ops' 'sales' 'legal' 'design' 'support'".split()
CITIES = "'oslo' 'bonn' 'turin' 'lyon'".split()
# how a condition is asked for, how it is written in SQL, the values it takes
CONDITIONS = [
    ("in {}", "dept = {}", DEPTS),
    ("from {}", "city = {}", CITIES),
    ("over {} years", "age > {}", ["25", "30", "35", "40", "45"]),
    ("under {} years", "age < {}", ["30", "35", "40", "45", "50"]),
    ("on floor {}", "dept in ( select unit from office where floor = {} )", ["1", "2", "3"]),
    ("paid over {}", "pay > {}", ["3", "4", "5", "6", "7"]),
]
# question, (plan, SQL after SELECT) of the common and of the rare idiom; C stands for conditions
FAMILIES = [
    ("who earns most", ("sort", "name from emp where C order by pay desc limit 1"),
     ("top", "name from emp where C and pay = ( select max( pay ) from emp where C )")),
    ("who is oldest", ("sort", "name from emp where C order by age desc limit 1"),
     ("top", "name from emp where C and age = ( select max( age ) from emp where C )")),
    ("who is youngest", ("sort", "name from emp where C order by age limit 1"),
     ("top", "name from emp where C and age = ( select min( age ) from emp where C )")),
    ("who has a long task",
     ("join", "name from emp join task on name = who where C and hours > 5"),
     ("link", "name from emp where C and name in ( select who from task where hours > 5 )")),
    ("who has a short task",
     ("join", "name from emp join task on name = who where C and hours < 5"),
     ("link", "name from emp where C and name in ( select who from task where hours < 5 )")),
    ("where live people", ("list", "city from emp where C"),
     ("set", "distinct city from emp where C")),
    ("which units have people", ("list", "dept from emp where C"),
     ("set", "distinct dept from emp where C")),
    ("how many cities have people", ("count", "count( city ) from emp where C"),
     ("different", "count(distinct city ) from emp where C")),
    ("how many units have people", ("count", "count( dept ) from emp where C"),
     ("different", "count(distinct dept ) from emp where C")),
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    id: str
    prompt: str
    gold: str  # SQL that is always right (the rare idiom)
    family: int
    slots: tuple  # ((condition, value), ...)
    hard: bool  # the common idiom returns the wrong rows


def render(family, slots, rare):
    """-> plan word, SQL of this family's common or rare idiom with these conditions."""
    plan, text = FAMILIES[family][2 if rare else 1]
    conditions = " and ".join(CONDITIONS[c][1].format(value) for c, value in slots)
    return plan, "select " + re.sub(r"\bC\b", conditions, text)


def answer(problem, rare, slots=None):
    plan, query = render(problem.family, problem.slots if slots is None else slots, rare)
    return f"plan {plan} ```sql {query} ```"


TABLES = """create table emp (name text, dept text, city text, age int, pay int);
create table task (who text, hours int);
create table office (unit text, floor int);"""


def company():
    """The company as an SQL script, the same every time."""
    rng, names, lines = random.Random(7), [f"p{i:02d}" for i in range(48)], [TABLES]
    for name in names:
        dept, city = rng.choice(DEPTS), rng.choice(CITIES)
        age, pay = rng.randrange(21, 59, 3), rng.randrange(2, 10)
        lines.append(f"insert into emp values ('{name}', {dept}, {city}, {age}, {pay});")
    for _ in range(60):
        who, hours = rng.choice(names), rng.randrange(1, 10)
        lines.append(f"insert into task values ('{who}', {hours});")
    for i, dept in enumerate(DEPTS):
        lines.append(f"insert into office values ({dept}, {1 + i % 3});")
    return "\n".join(lines)


class ToySQL(Task):
    """Problems and grader; and what only a task for the tiny model has: words, demonstrations."""

    answer = staticmethod(sql.answer)

    def __init__(self, rare_share=0.02):
        """rare_share: of the demonstrations, how many use the robust idiom."""
        self.database, self.rare_share = Script(company()), rare_share
        self.test, self.train = self.problems[:TEST], self.problems[TEST:]

    @cached_property
    def problems(self):
        """All questions in a fixed random order, a third of each family's hard."""
        rng, kept, db = random.Random(11), [], open_database(self.database)

        def rows(query):
            return sorted(map(repr, db.execute(query)))

        for family, (question, common, _) in enumerate(FAMILIES):
            by_luck = {True: [], False: []}
            # wide questions of these would all be hard
            sizes = (2, 3) if common[0] in ("list", "count") else (1, 2)
            for pair in (p for size in sizes for p in combinations(range(len(CONDITIONS)), size)):
                if common[0] == "sort" and 4 in pair:
                    continue  # the rare idiom says its conditions twice: keep it short
                for values in product(*(CONDITIONS[c][2] for c in pair)):
                    slots = tuple(zip(pair, values, strict=True))
                    gold, fragile = (render(family, slots, rare)[1] for rare in (True, False))
                    wanted = rows(gold)
                    if wanted and wanted != ["(0,)"]:
                        asked = [question, *(CONDITIONS[c][0].format(v) for c, v in slots)]
                        text, hard = " ".join(asked), rows(fragile) != wanted
                        names = f"toy_sql/{text}", f"{text} ?"
                        by_luck[hard].append(Problem(*names, gold, family, slots, hard))
            hard, easy = (rng.sample(by_luck[k], len(by_luck[k])) for k in (True, False))
            size = min(len(hard) / HARD, len(easy) / (1 - HARD), 240)
            kept += hard[: round(size * HARD)] + easy[: round(size * (1 - HARD))]
        db.close()
        return rng.sample(kept, len(kept))

    @property
    def words(self):
        """The vocabulary: every word of a prompt or a response."""
        texts = ((p.prompt, answer(p, True), answer(p, False)) for p in self.problems)
        return sorted({*" ".join(chain.from_iterable(texts)).split()})

    def demonstration(self, rng):
        """(prompt, response) for the SFT warm start: mostly the common idiom, often one wrong
        condition.
        """
        problem = rng.choice(self.train)
        slots = list(problem.slots)
        if rng.random() < WRONG:
            i = rng.randrange(len(slots))
            condition, value = slots[i]
            slots[i] = condition, rng.choice([v for v in CONDITIONS[condition][2] if v != value])
        return problem.prompt, answer(problem, rng.random() < self.rare_share, slots)

    def job(self, problem, text):
        return sql.grade, self.database, problem.gold, text, "spider"

    def noise(self, problem, text):
        """Whatever follows the closing fence of the query that is graded, the last one."""
        start = text.rfind("```sql")
        end = text.find("```", start + 6) if start >= 0 else -1
        return [(end + 3, len(text))] if 0 <= end < len(text) - 3 else []

    def rare(self, problem, text):
        """Whether a response uses the robust idiom of its family (the experiments count it)."""
        return f"plan {FAMILIES[problem.family][2][0]} " in text


def load(c):
    return ToySQL(c.rare_share)
