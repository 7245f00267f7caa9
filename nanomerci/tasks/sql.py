"""Questions answered in SQL (Spider, BIRD): comparing results, grading an answer, prompts, data,
noise.

How a query is run without trusting it: tasks/database.py.
"""

import json
import math
import re
import sqlite3
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nanomerci.tasks import Task, folder_of, needed
from nanomerci.tasks.graders.pool import Grade
from nanomerci.tasks.graders.sqlite import Rejected, Script, open_file, run, warm
from nanomerci.tasks.graders.worker import load as load_library
from nanomerci.tasks.math import repeated

COPY_LIMIT = 64 << 20  # bytes of the largest database that is copied for the anti-luck check


# ---- comparing results


def same_cell(a, b):
    """NULL equals NULL; text never equals a number; a float equals what is within 1e-6 of it,
    relative.
    """
    if isinstance(a, int | float) and isinstance(b, int | float):
        return (
            a == b
            or (isinstance(a, float) or isinstance(b, float))
            and math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
        )
    return a == b


def _sort_key(row):
    """Orders rows so that nearly equal floats cannot tear apart rows that belong together: numbers
    come last.
    """
    cells = [
        ("number",)
        if isinstance(x, int | float)
        else ("null",)
        if x is None
        else (type(x).__name__, x)
        for x in row
    ]
    return cells, [x for x in row if isinstance(x, int | float)]


def same_rows(gold, got, ordered):
    """The same rows as often, in the same order or in any. Lists of tuples."""
    if gold == got:
        return True
    if len(gold) != len(got) or gold and len(gold[0]) != len(got[0]):
        return False
    pairs = (
        zip(gold, got, strict=False)
        if ordered
        else zip(sorted(gold, key=_sort_key), sorted(got, key=_sort_key), strict=False)
    )
    return all(same_cell(a, b) for row, other in pairs for a, b in zip(row, other, strict=False))


def same_set(gold, got, ordered=False):
    """BIRD: the same set of rows, columns in the same order; duplicates and row order do not
    count.
    """
    a, b = set(gold.rows), set(got.rows)
    if a == b or gold.columns != got.columns:
        return a == b
    return same_rows(*(_distinct(sorted(rows, key=_sort_key)) for rows in (a, b)), ordered=False)


def _distinct(rows):
    """Sorted rows without those that equal their predecessor up to rounding."""
    return [row for i, row in enumerate(rows) if not i or not all(map(same_cell, row, rows[i - 1]))]


def same_result(gold, got, ordered=False):
    """Spider: the same rows as often under some permutation of the columns; in the same order if
    `ordered`.
    """
    if len(gold.rows) != len(got.rows) or not gold.rows or gold.columns != got.columns:
        return not gold.rows and not got.rows
    wanted, given = list(zip(*gold.rows, strict=False)), list(zip(*got.rows, strict=False))
    alike = [
        [k for k, g in enumerate(given) if same_rows([*zip(w)], [*zip(g)], ordered)] for w in wanted
    ]

    def place(
        chosen,
    ):  # columns of `got` for the first of `gold`; a partial match that fails cannot be completed
        tried = []
        for k in alike[len(chosen)]:
            if k not in chosen and given[k] not in tried:  # of identical columns one is enough
                tried.append(given[k])
                now = [*chosen, k]
                if same_rows(
                    [*zip(*wanted[: len(now)], strict=False)],
                    [*zip(*(given[k] for k in now), strict=False)],
                    ordered,
                ) and (len(now) == len(wanted) or place(now)):
                    return True
        return False

    return place([])


MATCH = {"bird": same_set, "spider": same_result}


def column_credit(gold, got):
    """0.8 c^2 / (n_gold n_got), c = columns with the same set of values, each used once (after
    DPH-RL). 0 to 0.8.
    """
    columns = [
        Counter(
            frozenset(float(f"{x:.6g}") if isinstance(x, float) else x for x in column)
            for column in zip(*r.rows, strict=False)
        )
        for r in (gold, got)
    ]
    common = (
        columns[0] & columns[1]
    ).total()  # once each: else three equal gold columns would pay 2.4 for one
    return 0.8 * common**2 / max(1, gold.columns * got.columns)


@lru_cache(4096)
def is_ordered(gold_sql):
    """Has the query an outer ORDER BY?"""
    sqlglot = load_library("sqlglot", warm)
    try:
        return sqlglot.parse_one(gold_sql, read="sqlite").args.get("order") is not None
    except sqlglot.errors.SqlglotError:  # gold queries are not all to sqlglot's taste
        return "order by" in gold_sql.lower().rpartition(")")[2]


# ---- grading an answer


def answer(text):
    """The query in the last ```sql fence, or None (no fence, not closed, or empty)."""
    starts = [found.end() for found in re.finditer(r"```sql\b", text, re.IGNORECASE)]
    end = text.find("```", starts[-1]) if starts else -1
    return text[starts[-1] : end].strip() or None if end >= 0 else None


def grade(database, gold_sql, text, match="bird", partial=False, copies=0, seconds=4.0):
    """match: bird | spider. partial: column credit for a wrong result. copies: perturbed copies on
    which the query must agree too. seconds: time a query may take; the pool's deadline should
    exceed twice that (gold and answer).
    """
    query = answer(text)
    if query is None:
        return Grade(0.0, "unparsable")
    return grade_query(database, gold_sql, query, match, partial, copies, seconds)


def grade_query(database, gold_sql, query, match="bird", partial=False, copies=0, seconds=4.0):
    """The same for a bare query."""
    for seed in (None, *(range(copies) if _copyable(database) else ())):
        try:
            gold = run(database, gold_sql, seconds=seconds, trusted=True, seed=seed)
        except Rejected as error:
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
    budget: int = 12_000  # characters of schema, above which example values are left out

    @property
    def prompt(self):
        evidence = f"Evidence: {self.evidence}\n" if self.evidence else ""
        return PROMPT.format(
            schema=schema(self.database, self.budget), question=self.question, evidence=evidence
        )


@lru_cache(512)
def schema(database, budget):
    """CREATE TABLE statements with example values; fewer, shorter, then no examples until it fits
    the budget (characters).
    """
    if isinstance(database, Script):
        connection = sqlite3.connect(":memory:")
        connection.executescript(database)
    else:
        connection = open_file(database)
    connection.text_factory = lambda data: data.decode(errors="replace")
    tables = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
    ]
    for count, width in ((3, 40), (2, 20), (1, 20), (0, 0)):
        text = "\n".join(_create(connection, table, count, width) for table in tables)
        if len(text) <= budget:
            break
    connection.close()
    return text


def _create(connection, table, count, width):
    """One CREATE TABLE with up to `count` example values a column, each cut to `width`
    characters.
    """

    def name(word):
        return word if re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", word) else f"`{word}`"

    info = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
    rows = connection.execute(f'SELECT * FROM "{table}" LIMIT 50').fetchall()
    keys = [column[1] for column in sorted(info, key=lambda column: column[5]) if column[5]]
    lines = []
    for i, column in enumerate(info):
        values = list(dict.fromkeys(row[i] for row in rows if row[i] is not None))[:count]
        shown = [
            repr(v if len(v) <= width else v[:width] + "...")
            if isinstance(v, str)
            else str(v)[:width]
            for v in values
        ]
        lines.append(
            (
                f"{name(column[1])} {column[2]}".strip(),
                f"  -- example: {', '.join(shown)}" if shown else "",
            )
        )
    lines += [(f"PRIMARY KEY ({', '.join(map(name, keys))})", "")] if keys else []
    for _, _, parent, column, other, *_ in connection.execute(
        f'PRAGMA foreign_key_list("{table}")'
    ):
        lines.append(
            (
                f"FOREIGN KEY ({name(column)}) REFERENCES {name(parent)} ({name(other or column)})",
                "",
            )
        )
    body = "\n".join(
        f"    {line}{',' if i < len(lines) - 1 else ''}{note}"
        for i, (line, note) in enumerate(lines)
    )
    return f"CREATE TABLE {name(table)} (\n{body}\n);"


def read_problems(folder, split="train", budget=12_000):
    """Problems of a Spider or BIRD folder as they are distributed, in file order. split: train |
    dev | test.

    Spider: train_spider.json, train_others.json, dev.json and database/ID/ID.sqlite, keys question,
    query, db_id. BIRD: train/train.json, dev/dev.json (or dev_2024.../) and
    SPLIT_databases/ID/ID.sqlite; question, evidence, SQL, db_id. Schemas are read from the SQLite
    files, so tables.json is not needed. Raises ValueError with one line.
    """
    root = Path(folder)
    files = [
        path
        for pattern in (f"{split}*.json", f"{split}*/{split}*.json")
        for path in sorted(root.glob(pattern))
        if not re.search("tables|gold|tied", path.name)
    ]
    if not files:
        raise ValueError(
            f"{folder}: no {split}*.json there or in {split}*/; wanted an unpacked Spider or "
            "BIRD folder"
        )
    problems = []
    for path in files:
        try:
            records = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path}: is not JSON ({error})") from None
        for i, record in enumerate(records):
            gold = record.get("SQL", record.get("query")) if isinstance(record, dict) else None
            if gold is None or "question" not in record or "db_id" not in record:
                raise ValueError(
                    f"{path}: record {i} lacks question, db_id, or query (Spider) / SQL (BIRD)"
                )
            database = _find_database(path.parent, record["db_id"], split)
            evidence = record.get("evidence") or ""
            problems.append(
                Problem(f"{path.stem}/{i}", record["question"], gold, database, evidence, budget)
            )
    return problems


@lru_cache(4096)
def _find_database(folder, name, split):
    bases = (
        f"{split}_databases",
        "database",
        "databases",
        f"{split}_database",
        f"{split}_databases/{split}_databases",
    )
    places = [folder / base / name / f"{name}.sqlite" for base in bases]
    for path in places:
        if path.exists():
            return str(path)
    raise ValueError(
        f"{places[0]}: no such database, nor under database/; download the databases beside "
        "the questions"
    )


# ---- noise


def noise(text):
    """Character spans that no query needs, for MERCI's third filter: prose after the last ```sql
    fence, fenced code in other languages, comments inside the SQL (free to write, never executed),
    verbatim repetition. Decided by us: the paper does not say. The reasoning before the query and
    the query itself stay.
    """
    spans, fences = repeated(text), [found.start() for found in re.finditer("```", text)]
    for start, end in zip(fences[::2], fences[1::2], strict=False):
        body = text[start + 3 : end]
        if body[:3].lower() != "sql":
            spans.append((start, end + 3))
            continue
        comments = re.finditer(r"--[^\n]*|/\*[^*]*\*/", body)
        spans += [(start + 3 + comment.start(), start + 3 + comment.end()) for comment in comments]
        if end == fences[-1] and end + 3 < len(text):
            spans.append((end + 3, len(text)))
    return sorted(spans)


class SQL(Task):
    """Questions about databases, graded by executing the SQL. Options as in `grade`."""

    def __init__(self, train=(), test=(), match="bird", partial=False, copies=0, seconds=4.0):
        super().__init__(train, test)
        if match not in MATCH:
            raise ValueError(f"match {match}: expected one of {', '.join(MATCH)}")
        self.options = match, partial, copies, seconds

    def noise(self, problem, text):
        return noise(text)

    def job(self, problem, text):
        return grade, problem.database, problem.gold, text, *self.options

    def answer(self, text):
        return answer(text)


def load(c):
    """--train_data, --test_data: Spider or BIRD folders. -> SQL."""
    train, test = needed(c), c.test_data or c.train_data
    train, test = (Path(folder_of(c, name) or ".") / name for name in (train, test))
    options = c.sql_match, c.partial_credit, c.perturbed_copies, c.query_seconds
    return SQL(read_problems(train, "train"), read_problems(test, "dev"), *options)
