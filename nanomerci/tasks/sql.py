"""sql: questions answered in SQL (Spider, BIRD), graded by executing it; needs --train_data.

Comparing results, grading a response, prompts, data, noise.

How a query is run without trusting it: tasks/graders/sqlite.py. What differs from the evaluators of
Spider and BIRD, and why: docs/sql-grading.md.
"""

import glob
import hashlib
import json
import math
import os
import re
import sqlite3
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path

from nanomerci.tasks import Task, cache_folder, needed
from nanomerci.tasks.graders.pool import Grade
from nanomerci.tasks.graders.sqlite import (
    Rejected,
    Script,
    faults,
    open_database,
    quoted,
    run,
    tables,
)
from nanomerci.tasks.math import repeated

BUDGET = 12_000  # characters of schema in a prompt, above which example values are left out
COPY_LIMIT = 64 << 20  # bytes of the largest database that is copied for the anti-luck check


# ---- comparing results


def snap(gold, got):
    """Both lists of rows, in which numbers that differ by rounding, at most 1e-12 of themselves,
    have become the same number. Two whole numbers (sums, ids, dates) are equal or not.
    """
    cells = chain.from_iterable(chain(gold, got))
    same, first = {}, math.nan
    for x in sorted({x for x in cells if isinstance(x, int | float)}):
        if math.isclose(x, first, rel_tol=1e-12) and not (_whole(x) and _whole(first)):
            same[x] = first
        else:
            first = x
    if not same:
        return gold, got
    return tuple([tuple(same.get(x, x) for x in row) for row in rows] for rows in (gold, got))


def _whole(x):
    """Is it a whole number, and not just for want of digits?"""
    return float(x).is_integer() and abs(x) < 2**53


def same_set(gold, got, ordered=False):
    """BIRD: the same set of rows, columns in their order; repeated rows and row order are free."""
    if set(gold.rows) == set(got.rows) or gold.columns != got.columns:
        return set(gold.rows) == set(got.rows)
    a, b = snap(gold.rows, got.rows)
    return set(a) == set(b)


def same_result(gold, got, ordered=False):
    """Spider: the same rows as often under some permutation of the columns; in the same order if
    `ordered`.
    """
    if len(gold.rows) != len(got.rows) or gold.columns != got.columns:
        return not gold.rows and not got.rows
    if gold.rows == got.rows:
        return True
    a, b = snap(gold.rows, got.rows)
    wanted, given = list(zip(*a, strict=False)), list(zip(*b, strict=False))
    if ordered:
        return Counter(wanted) == Counter(given)
    return Counter(a) == Counter(b) or _place(wanted, given, [0] * len(a), [0] * len(b))


def _place(wanted, given, left, right):
    """Can columns `given` be put in an order that makes the rows those of `wanted`, as often?
    left, right: what the rows hold in columns that have their place, as numbers: equal if that is.
    A partial match that fails cannot be completed.
    """
    if not wanted:
        return True
    number = {}
    left = [number.setdefault(pair, len(number)) for pair in zip(left, wanted[0], strict=False)]
    count = Counter(left)
    for k, column in enumerate(given):
        if column in given[:k]:  # of identical columns one is enough
            continue
        placed = [number.get(pair) for pair in zip(right, column, strict=False)]
        rest = given[:k] + given[k + 1 :]
        if count == Counter(placed) and _place(wanted[1:], rest, left, placed):
            return True
    return False


MATCH = {"bird": same_set, "spider": same_result}


def column_credit(gold, got):
    """0.8 c^2 / (n_gold n_got), c = columns with the same values as often, each used once (after
    DPH-RL, which does not ask how often: a cross join of the right tables would have every column
    right). 0 to 0.8.
    """
    columns = [
        Counter(frozenset(Counter(column).items()) for column in zip(*rows, strict=False))
        for rows in snap(gold.rows, got.rows)
    ]
    common = columns[0] & columns[1]  # else three equal gold columns would pay 2.4 for one
    return 0.8 * common.total() ** 2 / max(1, gold.columns * got.columns)


@lru_cache(4096)
def is_ordered(gold_sql):
    """Has the query an outer ORDER BY? That is one outside all brackets."""
    quotes = r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^]]*\]|--[^\n]*|/\*.*?\*/"""
    bare, found = re.sub(quotes, " ", gold_sql, flags=re.DOTALL), 1
    while found:
        bare, found = re.subn(r"\([^()]*\)", " ", bare)
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


# ---- grading an answer

FENCE = re.compile(r"sql\b", re.IGNORECASE)  # behind the three backticks


def answer(text):
    """The query in the last ```sql fence that is closed, or None (no such fence, or empty)."""
    query = ""
    for part, after in pairwise(text.split("```")[1:]):
        if FENCE.match(part) and not FENCE.match(after):  # not: the opening of the next query
            query = part[3:]
    return query.strip() or None


def grade(database, gold_sql, text, match="bird", partial=False, copies=0, seconds=4.0):
    """match: bird | spider. partial: column credit for a wrong result. copies: perturbed copies on
    which the query must agree too. seconds: time a query may take; the pool's deadline should
    exceed twice that (gold and answer).
    """
    query = answer(text)
    if query is None:
        return Grade(0.0, "unparsable")
    if copies and not _copyable(database):
        copies = 0
    for seed in (None, *range(copies)):
        try:
            gold = run(database, gold_sql, seconds=seconds, trusted=True, seed=seed)
        except Rejected as error:
            if seed is not None:  # such a copy says nothing about the answer
                continue
            raise RuntimeError(
                f"gold query fails on {str(database):.80}: {error}: {gold_sql}"
            ) from error
        try:
            got = run(database, query, seconds=seconds, seed=seed)
        except Rejected as error:
            return Grade(0.0, error.outcome)
        if not MATCH[match](gold, got, match == "spider" and is_ordered(gold_sql)):
            return Grade(column_credit(gold, got) if partial and seed is None else 0.0, "wrong")
    return Grade(1.0, "right")


@lru_cache(1024)
def _copyable(database):
    return isinstance(database, Script) or Path(database).stat().st_size <= COPY_LIMIT


# ---- prompts and data

PROMPT = """You translate questions into SQL.

Database engine: SQLite

Database schema:
{schema}

Question: {question}
{evidence}
Instructions:
- Answer the question with one SELECT statement (WITH ... SELECT is fine).
- Return exactly the columns the question asks for, in the order it asks for them.
- Think step by step, then put the final query in a fenced block:
```sql
-- your query
```"""


@dataclass(frozen=True)
class Problem:
    id: str
    question: str
    gold: str  # the gold query
    database: str  # path of the SQLite file, or a Script
    evidence: str = ""  # BIRD's hint

    @property
    def prompt(self):
        evidence = f"Evidence: {self.evidence}\n" if self.evidence else ""
        return PROMPT.format(
            schema=schema(self.database, BUDGET), question=self.question, evidence=evidence
        )


@lru_cache(512)
def schema(database, budget):
    """CREATE statements with example values; fewer, shorter, then no examples until it fits
    the budget (characters).
    """
    connection = open_database(database)
    shown = []
    for name, statement in tables(connection):
        with suppress(sqlite3.OperationalError):  # no such module: no query can read it either
            cursor = connection.execute(f"SELECT * FROM main.{quoted(name)} LIMIT 50")
            columns = [column[0] for column in cursor.description]
            shown.append((statement, columns, cursor.fetchall()))
    connection.close()
    for count, width in ((3, 40), (2, 20), (1, 20), (0, 0)):
        text = "\n".join(_create(*table, count, width) for table in shown)
        if len(text) <= budget:
            break
    return text


def _create(statement, columns, rows, count, width):
    """The table's own CREATE statement, under it up to `count` example values a column, each cut
    to `width` characters.
    """
    lines = [f"{statement};"]
    for name, values in zip(columns, zip(*rows, strict=False), strict=False):
        values = list(dict.fromkeys(v for v in values if v is not None))[:count]
        if values:
            shown = ", ".join(_short(value, width) for value in values)
            lines.append(f"-- {' '.join(name.split())}, e.g. {shown}")
    return "\n".join(lines)


def _short(value, width):
    if not isinstance(value, str):
        return str(value)[:width]
    if len(value) > width:
        value = value[:width] + "..."
    return repr(value)


def read_problems(folder, split="train", seconds=4.0, strict=False, cache=None):
    """Problems of a Spider or BIRD folder as they are distributed, in file order. split: train |
    dev | test. folder: also one file of questions, with its databases beside it.

    Spider: train_spider.json, train_others.json, dev.json and database/ID/ID.sqlite, keys question,
    query, db_id. BIRD: train/train.json, dev/dev.json (or dev_2024.../), mini_dev_sqlite.json and
    SPLIT_databases/ID/ID.sqlite; question, evidence, SQL, db_id. Schemas are read from the SQLite
    files, so tables.json is not needed.

    A question that cannot be asked or graded is left out, with a count and its place on stderr;
    strict: raises instead. So is one whose gold query fails, is too slow (about `seconds`, counted
    in steps, which are the same on every machine) or gives no row, as any empty query would: they
    are run once. What was found is kept in the folder `cache`. Raises ValueError with one line.
    """
    found, seen = {}, set()  # place -> a problem, or what is wrong with it
    for path in _question_files(Path(folder), split):
        for i, record in enumerate(_records(path)):
            try:
                problem = _problem(path, i, record, split)
                number = record.get("question_id")
                if number is not None and (number, problem.database, problem.question) in seen:
                    raise ValueError("repeats a question and its question_id")
                seen.add((number, problem.database, problem.question))
                found[path, i] = problem
            except ValueError as error:
                found[path, i] = str(error)
    golds = {}
    for place, problem in found.items():
        if isinstance(problem, Problem):
            golds.setdefault(problem.database, {})[place] = problem.gold

    def check(database):
        places, queries = golds[database], [*golds[database].values()]
        return zip(places, _check(database, queries, seconds, cache), strict=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found |= {place: why for place, why in chain(*pool.map(check, golds)) if why}
    wrong = {}
    for (path, i), why in found.items():
        if isinstance(why, str):
            wrong.setdefault((path, why), []).append(str(i))
    lines = [
        f"{path}: {len(places)} questions left out: record {', '.join(places[:20])}"
        f"{', ...' * (len(places) > 20)} {why}"
        for (path, why), places in wrong.items()
    ]
    left = [problem for problem in found.values() if isinstance(problem, Problem)]
    if not left or lines and strict:
        raise ValueError([*lines, f"{folder}: no questions for {split}"][0])
    if lines:
        print(*lines, f"{folder}: {len(left)} of {len(found)} left", sep="\n", file=sys.stderr)
    return left


def _check(database, golds, seconds, cache):
    """What is wrong with each gold query, or None; remembered in the folder `cache`."""
    if not cache:
        return faults(database, golds, seconds)
    Path(cache).mkdir(parents=True, exist_ok=True)
    of = Path(database).stat()
    key = (database, of.st_size, of.st_mtime_ns, golds, seconds, sqlite3.sqlite_version)
    digest = hashlib.sha256(repr(key).encode(errors="replace")).hexdigest()[:16]
    file = Path(cache) / f"gold-{digest}.json"
    if not file.exists():
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(faults(database, golds, seconds)))
        scratch.replace(file)
    return json.loads(file.read_text())


def _question_files(root, split):
    """The file of that split; of several side by side the one that is called so. Where none is,
    all that begin so and hold questions (Spider's train_spider.json and train_others.json).
    """
    if root.is_file():
        return [root]
    inside = sorted(root.glob("*/"), key=lambda f: (not f.name.startswith(split), f.name))
    for folder in (root, *inside):
        for name in (f"{split}.json", f"mini_{split}_sqlite.json"):
            if (folder / name).is_file():
                return [folder / name]
        files = [f for f in sorted(folder.glob(f"{split}*.json")) if _asks(f)]
        if files:
            return files
    raise ValueError(
        f"{root}: no {split}*.json with questions there or in a folder of it; expected an "
        "unpacked Spider or BIRD folder"
    )


def _asks(path):
    """Not so a file of tables, of column meanings, of prompts."""
    first = next(iter(_records(path)), None)
    return isinstance(first, dict) and "question" in first and bool({"SQL", "query"} & {*first})


def _records(path):
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(
            f"{path}: is not JSON ({error}); `git lfs pull` if it is a pointer"
        ) from None
    if not isinstance(records, list):
        records = []
    return records


def _problem(path, i, record, split):
    """Raises ValueError with what the record lacks."""
    if not isinstance(record, dict):
        record = {}
    name, gold = record.get("db_id"), record.get("SQL", record.get("query"))
    if isinstance(name, int):
        name = str(name)
    if not all(isinstance(x, str) and x.strip() for x in (record.get("question"), name, gold)):
        raise ValueError("lacks question, db_id, or query (Spider) / SQL (BIRD), or one is no text")
    evidence = record.get("evidence")
    if not isinstance(evidence, str):
        evidence = ""
    database = _find_database(path.parent, name, split)
    return Problem(f"{path.stem}/{i}", record["question"], gold, database, evidence)


@lru_cache(4096)
def _find_database(folder, name, split):
    place = f"{glob.escape(name)}/{glob.escape(name)}.sqlite"
    for start in (f"{split}_", ""):  # the split's own first
        for pattern in (f"{start}*database*/{place}", f"{start}*database*/*/{place}"):
            for path in sorted(folder.glob(pattern)):
                return str(path)
    raise ValueError(
        f"names {folder}/{split}_databases/{name}/{name}.sqlite: no such database, nor under "
        "database/; download the databases beside the questions"
    )


# ---- noise

COMMENT = re.compile(r"--[^\n]*|/\*[^*]*\*/")


def noise(text):
    """Character spans that no query needs, for MERCI's third filter: prose after the last ```sql
    fence, fenced code in other languages, comments inside the SQL (free to write, never executed),
    verbatim repetition. Decided by us: the paper does not say. The reasoning before the query and
    the query itself stay.
    """
    spans, sql, end = repeated(text), False, 0
    for fence in re.finditer(r"```(.*?)```", text, re.DOTALL):
        sql, end = fence[1][:3].lower() == "sql", fence.end()
        if sql:
            spans += [comment.span() for comment in COMMENT.finditer(text, *fence.span(1))]
        else:
            spans.append(fence.span())
    if sql and end < len(text) and "```" not in text[end:]:
        spans.append((end, len(text)))
    return sorted(spans)


class SQL(Task):
    """Questions about databases, graded by executing the SQL. Options as in `grade`."""

    answer = staticmethod(answer)

    def __init__(self, train=(), test=(), match="bird", partial=False, copies=0, seconds=4.0):
        super().__init__(train, test)
        if match not in MATCH:
            raise ValueError(f"match {match}: expected one of {', '.join(MATCH)}")
        self.options = match, partial, copies, seconds

    def noise(self, problem, text):
        return noise(text)

    def job(self, problem, text):
        return grade, problem.database, problem.gold, text, *self.options


def load(c):
    """--train_data, --test_data: Spider or BIRD folders. -> SQL."""
    how = {"seconds": c.query_seconds, "strict": c.strict_data, "cache": cache_folder()}
    train, test = (
        read_problems(name if Path(name).exists() else Path(c.data_folder, name), split, **how)
        for name, split in ((needed(c), "train"), (c.test_data or c.train_data, "dev"))
    )
    return SQL(train, test, c.sql_match, c.partial_credit, c.perturbed_copies, c.query_seconds)
