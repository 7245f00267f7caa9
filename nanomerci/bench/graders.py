"""Graded responses per second of three streams, in batches of a step's size."""

import random
import time
from collections import Counter

from nanomerci.runtime.config import UserError
from nanomerci.tasks import math, sql
from nanomerci.tasks.graders.pool import Pool
from nanomerci.tasks.graders.sqlite import Script

SHOP = Script(
    "CREATE TABLE pet (kind TEXT, age INTEGER); INSERT INTO pet VALUES ('cat', 3), ('dog', 9), "
    "('cat', 4), ('eel', 1);"
)
GOLD_SQL = "SELECT kind FROM pet WHERE age > 2 GROUP BY kind"
ENDLESS_SQL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
JOIN_SQL = f"SELECT count(*) FROM {', '.join(f'pet p{i}' for i in range(18))}"
HOSTILE = [  # each holds a worker until its deadline at most, or until its memory is full
    (sql.grade, SHOP, GOLD_SQL, f"```sql\n{ENDLESS_SQL}\n```"),
    (sql.grade, SHOP, GOLD_SQL, f"```sql\n{JOIN_SQL}\n```"),
    (math.grade, "7", "\\boxed{9^{9^{9^{9}}}}"),
    (math.grade, "7", "\\boxed{1000000!}"),
    (math.grade, "x+1", f"\\boxed{{{'(' * 500}x{')' * 500}}}"),
]
BATCH = 512  # responses graded together: a small step


def easy(rng):
    """A number, a fraction, a decimal: read exactly, without sympy."""
    a, b = rng.randrange(1, 999), rng.randrange(2, 99)
    pairs = [
        (f"{a}", f"{a}"),
        (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
        (f"{a / 4}", f"\\frac{{{a}}}{{4}}"),
        (f"{a}", f"{b}"),
    ]
    gold, got = rng.choice(pairs)
    talk = f"First we look at it from all sides. {'So it goes. ' * 40}"
    return math.grade, gold, f"{talk}The answer is $\\boxed{{{got}}}$."


def mixed(rng):
    """Half easy; a quarter that need sympy (roots, polynomials, intervals); a quarter SQL."""
    a, b = rng.randrange(2, 50), rng.randrange(2, 50)
    kind = rng.random()
    if kind < 0.5:
        return easy(rng)
    if kind < 0.75:
        pairs = [
            (f"{a}\\sqrt{{2}}", f"\\sqrt{{{2 * a * a}}}"),
            (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"),
            (f"({a}, {a + b})", f"\\left({a},{a + b}\\right)"),
            (f"\\sin^2 x+{a}", f"{a + 1}-\\cos^2 x"),
        ]
        gold, got = rng.choice(pairs)
        return math.grade, gold, f"We get \\boxed{{{got}}}."
    age = rng.choice([2, 2, 3])
    query = f"SELECT DISTINCT kind FROM pet WHERE age > {age} AND age < {100 + a * b}"
    return sql.grade, SHOP, GOLD_SQL, f"Thinking.\n```sql\n{query}\n```", "spider"


def hostile(rng):
    """Mixed, but one response of twenty is hostile."""
    return rng.choice(HOSTILE) if rng.random() < 0.05 else mixed(rng)


def measure(stream, o):
    """-> Counter of outcomes, seconds of grading."""
    rng, outcomes, spent = random.Random(0), Counter(), 0.0
    with Pool(o.workers, o.grade_timeout) as pool:
        # libraries are loaded once per run: not counted
        pool.grade([mixed(rng) for _ in range(64 * o.workers)])
        while spent < o.seconds:
            jobs = [stream(rng) for _ in range(BATCH)]
            start = time.perf_counter()
            grades = pool.grade(jobs)
            spent += time.perf_counter() - start
            outcomes.update(grade.outcome for grade in grades)
        if outcomes["error"]:
            raise UserError(f"a grader failed: {pool.last_error}")
    return outcomes, spent


def run(o):
    print(
        f"graders: {o.workers} workers, deadline {o.grade_timeout} s, batches of {BATCH} "
        f"responses, at least {o.seconds} s per stream\n"
        f"{'stream':10s} {'per second':>10s} {'responses':>9s} {'seconds':>8s} {'timeouts':>9s} "
        f"{'allowed':>9s}   outcomes"
    )
    for stream in (easy, mixed, hostile):
        outcomes, spent = measure(stream, o)
        total, timeouts = outcomes.total(), outcomes["timeout"]
        print(
            f"{stream.__name__:10s} {total / spent:10,.0f} {total:9,d} {spent:8.1f} "
            f"{timeouts:9d} {timeouts * o.grade_timeout / o.workers:7.1f} s   "
            + "  ".join(f"{name} {count}" for name, count in outcomes.most_common())
        )
    print(
        "equal: the pool, its deadline and memory, the seed of the responses, the warm-up; start "
        "of workers not counted.\n"
        "allowed: timeouts x deadline / workers; the other seconds went into grading and new "
        "workers."
    )
