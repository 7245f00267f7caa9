"""Every hostile answer of redteam.py: on time, never right, and without a trace."""

import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest
import redteam

from nanomerci.tasks import math, sql
from nanomerci.tasks.graders.pool import Pool

DEADLINE = 2.0
OTHERS = set()  # what else runs when these tests begin: another test's fork server, say
# loads sympy in a fresh worker, so that no answer waits for a start
WARM_UP = [(math.grade, "x+x", "\\boxed{2x}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("redteam")
    with sqlite3.connect(folder / "shop.sqlite") as connection:
        connection.executescript(redteam.SCRIPT)
    connection.close()
    return folder


@pytest.fixture(scope="module")
def pool(folder):
    OTHERS.update(children())
    before = os.getcwd()
    os.chdir(folder)  # where an answer that writes "pwned" would leave it
    with Pool(workers=1, deadline=DEADLINE, memory=1 << 30) as pool:
        yield pool
    os.chdir(before)


def children(pid="self"):
    """Process ids of all descendants, others' left out."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    born = set(" ".join((thread / "children").read_text() for thread in threads).split())
    return born.union(*map(children, born)) - OTHERS


def state(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def attack(pool, folder, jobs):
    """Grades the jobs one by one -> their grades. Wants each on time, no file left, the database as
    it was, one process.
    """
    before, grades, faults = state(folder), [], []
    for job in jobs:
        assert pool.grade(WARM_UP)[0].outcome == "right", pool.last_error
        start = time.monotonic()
        grades += pool.grade([job])
        seconds = time.monotonic() - start
        paid = grades[-1].reward or grades[-1].outcome in ("right", "error")
        if seconds > 1.2 * DEADLINE or paid:
            faults.append(f"{grades[-1]} after {seconds:.1f} s: {job[1:4]!r:.200}")
    assert not faults, f"{len(faults)} faults, last error {pool.last_error}\n" + "\n".join(faults)
    assert state(folder) == before
    assert len(children()) <= 2  # the fork server, and its one worker
    return grades


def test_there_are_two_hundred():
    assert len({*redteam.MATH, *redteam.WHOLE, *redteam.SQL, *redteam.FENCES}) >= 200


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts processes in /proc")
class TestHostile:
    def test_mathematics(self, pool, folder):
        wholes = [f"So it is \\boxed{{{one}}}." for one in redteam.MATH] + redteam.WHOLE
        grades = attack(pool, folder, [(math.grade, redteam.GOLD, text) for text in wholes])
        # the budget catches most, not the deadline
        assert sum(grade.outcome == "unsafe" for grade in grades) > 60

    def test_queries(self, pool, folder):
        texts = [f"```sql\n{query}\n```" for query in redteam.SQL] + redteam.FENCES
        jobs = [
            (sql.grade, str(folder / "shop.sqlite"), redteam.GOLD_SQL, text, "bird", False, 0, 0.4)
            for text in texts
        ]
        grades = attack(pool, folder, jobs)
        assert sum(grade.outcome == "unsafe" for grade in grades) > 100
        right = jobs[0][:3] + (f"```sql\n{redteam.GOLD_SQL} ORDER BY 1\n```",) + jobs[0][4:]
        # the grader is not merely refusing everything
        assert pool.grade([right])[0].outcome == "right"

    def test_nothing_is_left(self, pool, folder):
        pool.grade(WARM_UP)
        assert children()
        pool.close()
        assert not children()
        assert [path.name for path in folder.iterdir()] == ["shop.sqlite"]
