"""The table of docs/graders.md: our grader of mathematics beside math-verify, in one run.

    pip download --no-binary :all: --no-deps math-verify && tar xzf math_verify-*.tar.gz
    python tests/grader_table.py math_verify-*/

Suites: math-verify's own tests (its sdist has them; without the folder they are left out), short
golds with an answer as such, since how an answer is found in prose is another question; the cases
of math_cases.jsonl; our lists of every kind (test_math_kinds.py).
"""

import ast
import re
import sys
import time
from pathlib import Path

import test_agreement
import test_math_kinds as kinds

from nanomerci.tasks import math
from nanomerci.tasks.graders.pool import Pool


def shipped(folder):
    """(gold, answer, right) of the tables of math-verify's tests, read without running them."""
    for path in sorted(Path(folder).glob("tests/test_*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "parametrize":
                yield from _rows(call)


def _rows(call):
    names = re.findall(r"\w+", ast.unparse(call.args[0]))
    if names[:2] != ["gold", "pred"] or not {"expected", "result"} & {*names}:
        return
    at = names.index("expected" if "expected" in names else "result")
    for row in call.args[1].elts:
        if any(isinstance(node, ast.JoinedStr) for node in ast.walk(row)):
            continue  # made of another test's values
        gold, answer, *rest = ast.literal_eval(row)
        gold = math.answer(gold) if "\\boxed" in gold else gold
        alone = "\\boxed" in answer or answer[0] == answer[-1] == "$"
        prose = re.search("[a-z]{3} [a-z]{2}", answer)
        if gold and len(gold) <= 200 and len(answer) <= 200 and (alone or not prose):
            yield gold, answer, bool(rest[at - 2])


def suites(folder):
    if folder:
        yield "math-verify's tests", list(shipped(folder))
    rows = [(case["gold"], case["answer"], case["expected"] == "right") for case in kinds.CASES]
    yield "math_cases.jsonl", rows
    tables = ((kinds.WRONG, False), (kinds.RIGHT, True))
    ours = [(*pair, right) for table, right in tables for kind in table for pair in table[kind]]
    yield "our kinds", ours


def content(answer):
    """What stands in the box, for math-verify to put into one."""
    return math.answer(kinds.whole(answer)) or answer


def judged(function, jobs):
    """Rewards, and milliseconds a job; the workers are warm."""
    with Pool(workers=1, deadline=20.0, memory=3 << 30) as pool:
        pool.grade([(function, "\\sqrt{8}+x", "\\boxed{x+2\\sqrt2}")])
        start = time.monotonic()
        grades = pool.grade([(function, *job) for job in jobs])
        return [grade.reward for grade in grades], 1000 * (time.monotonic() - start) / len(jobs)


def main(folder=None):
    print("| suite | cases | grader | as expected | wrong answers paid | right refused | ms each |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in suites(folder):
        for grader, function, jobs in (
            ("ours", math.grade, [(gold, kinds.whole(answer)) for gold, answer, _ in rows]),
            ("math-verify", test_agreement.math_verify, [(g, content(a)) for g, a, _ in rows]),
        ):
            rewards, each = judged(function, jobs)
            paid = sum(reward > right for reward, (*_, right) in zip(rewards, rows, strict=False))
            refused = sum(
                reward < right for reward, (*_, right) in zip(rewards, rows, strict=False)
            )
            share = 1 - (paid + refused) / len(rows)
            cells = name, len(rows), grader, f"{share:.1%}", paid, refused, f"{each:.1f}"
            print("|", " | ".join(map(str, cells)), "|")


if __name__ == "__main__":
    main(*sys.argv[1:])
