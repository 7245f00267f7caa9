"""Speed, each against what was equal.

    python -m nanomerci.bench graders [--seconds 10] [--workers 2] [--grade_timeout 2]
    python -m nanomerci.bench sampler [--shape tiny] [--rows 128] [--group 8] [--length 48] [--dtype float32] [--growth]
    python -m nanomerci.bench step [--rows 128] [--group 8] [--length 48] [--steps 12] [--bonus cfn] [--cfn_features frozen] [--growth]

A benchmark is a function (options) -> None that prints its table and says what was equal; BENCHES
names them.
"""

import argparse
import random
import sys
import time
from collections import Counter

from nanomerci.bench import speed
from nanomerci.runtime.config import UserError, run_command
from nanomerci.tasks import math, sql
from nanomerci.tasks.graders.pool import Pool
from nanomerci.tasks.graders.sqlite import Script

SHOP = Script(
    "CREATE TABLE pet (kind TEXT, age INTEGER); INSERT INTO pet VALUES ('cat', 3), ('dog', 9), "
    "('cat', 4), ('eel', 1);"
)
GOLD_SQL = "SELECT kind FROM pet WHERE age > 2 GROUP BY kind"
# answers that hold a worker until its deadline, or until its memory is full: each costs its whole
# deadline at most
HOSTILE = [
    (
        sql.grade,
        SHOP,
        GOLD_SQL,
        "```sql\nWITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) "
        "FROM n\n```",
    ),
    (
        sql.grade,
        SHOP,
        GOLD_SQL,
        "```sql\nSELECT count(*) FROM " + ", ".join(f"pet p{i}" for i in range(18)) + "\n```",
    ),
    (math.grade, "7", "\\boxed{9^{9^{9^{9}}}}"),
    (math.grade, "7", "\\boxed{1000000!}"),
    (math.grade, "x+1", "\\boxed{" + "(" * 500 + "x" + ")" * 500 + "}"),
]
BATCH = 512  # answers graded together: a small step


def easy(rng):
    """A number, a fraction, a decimal: read exactly, without sympy."""
    a, b = rng.randrange(1, 999), rng.randrange(2, 99)
    gold, got = rng.choice(
        [
            (f"{a}", f"{a}"),
            (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"),
            (f"{a / 4}", f"\\frac{{{a}}}{{4}}"),
            (f"{a}", f"{b}"),
        ]
    )
    return (
        math.grade,
        gold,
        f"First we look at it from all sides. {'So it goes. ' * 40}The answer is "
        f"$\\boxed{{{got}}}$.",
    )


def mixed(rng):
    """Half easy; a quarter that need sympy (roots, polynomials, intervals); a quarter SQL."""
    a, b = rng.randrange(2, 50), rng.randrange(2, 50)
    if (kind := rng.random()) < 0.5:
        return easy(rng)
    if kind < 0.75:
        gold, got = rng.choice(
            [
                (f"{a}\\sqrt{{2}}", f"\\sqrt{{{2 * a * a}}}"),
                (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b})"),
                (f"({a}, {a + b})", f"\\left({a},{a + b}\\right)"),
                (f"\\sin^2 x+{a}", f"{a + 1}-\\cos^2 x"),
            ]
        )
        return math.grade, gold, f"We get \\boxed{{{got}}}."
    query = (
        f"SELECT DISTINCT kind FROM pet WHERE age > {rng.choice([2, 2, 3])} AND age < {100 + a * b}"
    )
    return sql.grade, SHOP, GOLD_SQL, f"Thinking.\n```sql\n{query}\n```", "spider"


def hostile(rng):
    """Mixed, but one answer of twenty is hostile."""
    return rng.choice(HOSTILE) if rng.random() < 0.05 else mixed(rng)


def graders(o):
    """Graded answers a second of three streams, in batches of a step's size."""
    print(
        f"graders: {o.workers} workers, deadline {o.grade_timeout} s, batches of {BATCH} answers, "
        f"at least {o.seconds} s a stream\n"
        f"{'stream':10s} {'answers/s':>10s} {'answers':>8s} {'seconds':>8s} {'timeouts':>9s} "
        f"{'allowed':>9s}   outcomes"
    )
    for stream in (easy, mixed, hostile):
        rng, outcomes, spent = random.Random(0), Counter(), 0.0
        with Pool(o.workers, o.grade_timeout) as pool:
            pool.grade(
                [mixed(rng) for _ in range(64 * o.workers)]
            )  # libraries are loaded once a run: not counted
            while spent < o.seconds:
                jobs = [stream(rng) for _ in range(BATCH)]
                start = time.perf_counter()
                found = Counter(grade.outcome for grade in pool.grade(jobs))
                spent += time.perf_counter() - start
                outcomes += found
        answers, allowed = outcomes.total(), outcomes["timeout"] * o.grade_timeout / o.workers
        print(
            f"{stream.__name__:10s} {answers / spent:10,.0f} {answers:8,d} {spent:8.1f} "
            f"{outcomes['timeout']:9d} {allowed:7.1f} s   "
            + "  ".join(f"{name} {count}" for name, count in outcomes.most_common())
        )
        if outcomes["error"]:
            raise UserError(f"a grader failed: {pool.last_error}")
    print(
        "equal: the pool, its deadline and memory, the seed of the answers, the warm-up; start "
        "of workers not counted.\n"
        "allowed: timeouts x deadline / workers; the other seconds went into grading and new "
        "workers."
    )


BENCHES = {"graders": graders, "sampler": speed.sampler, "step": speed.step}


def main():
    p = argparse.ArgumentParser(
        prog="python -m nanomerci.bench", description=__doc__.split("\n")[0]
    )
    p.add_argument(
        "bench",
        choices=BENCHES,
        help=", ".join(f"{name}: {f.__doc__.splitlines()[0]}" for name, f in BENCHES.items()),
    )
    p.add_argument(
        "--seconds", type=float, default=10.0, help="at least so long a row (default 10)"
    )
    p.add_argument("--workers", type=int, default=2, help="graders: processes (default 2)")
    p.add_argument(
        "--grade_timeout",
        type=float,
        default=2.0,
        help="graders: seconds an answer may take (default 2)",
    )
    p.add_argument("--rows", type=int, default=128, help="sampler, step: rows, P x G (default 128)")
    p.add_argument("--group", type=int, default=8, help="sampler, step: G (default 8)")
    p.add_argument(
        "--length", type=int, default=48, help="sampler, step: new tokens at most (default 48)"
    )
    p.add_argument(
        "--shape",
        choices=speed.SHAPES,
        default="tiny",
        help="sampler: the model's shape, random weights (default tiny)",
    )
    p.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="sampler: of the weights (default float32)",
    )
    p.add_argument("--rounds", type=int, default=5, help="sampler: rounds in turn (default 5)")
    p.add_argument("--steps", type=int, default=12, help="step: steps that count (default 12)")
    p.add_argument(
        "--bonus",
        choices=["none", "cfn"],
        default="cfn",
        help="step: ours with or without the counter (default cfn)",
    )
    p.add_argument(
        "--cfn_features",
        choices=["frozen", "policy"],
        default="frozen",
        help="step: as in train.py (default frozen)",
    )
    p.add_argument(
        "--growth",
        action="store_true",
        help="sampler, step: also how it grows with rows, length, size; with the group",
    )
    o = p.parse_args(sys.argv[1:])
    BENCHES[o.bench](o)


if __name__ == "__main__":
    run_command(main)
