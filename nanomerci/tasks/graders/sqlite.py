"""Running a query that a model wrote on a SQLite database, without trusting it.

A query passes, in this order: a length limit; sqlglot, which must see exactly one statement, a
SELECT or WITH ... SELECT; a read-only, immutable connection; an authorizer that permits reading the
database's own tables, functions from a list, and recursion; SQLite's own limits; a progress handler
with a deadline; caps on rows and bytes. All of it runs in a worker of pool.Pool, whose deadline
and memory limit hold where one opcode outruns the progress handler.

A database is named by the path of its SQLite file, or is a Script. Connections and results are
cached in the worker.
"""

import itertools
import math
import random
import re
import sqlite3
import time
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from nanomerci.tasks.graders.worker import load

MAX_QUERY = 20_000  # characters; BIRD's longest gold query has under 2,000
MAX_ROWS, MAX_BYTES = 200_000, 64 << 20  # of a result
LIMITS = {
    "LENGTH": 16 << 20,
    "SQL_LENGTH": MAX_QUERY,
    "COLUMN": 500,
    "EXPR_DEPTH": 200,
    "COMPOUND_SELECT": 50,
    "VDBE_OP": 100_000,
    "FUNCTION_ARG": 32,
    "ATTACHED": 0,
    "LIKE_PATTERN_LENGTH": 200,
    "VARIABLE_NUMBER": 100,  # none in a query; SQLite's own on virtual tables have them
    "TRIGGER_DEPTH": 0,
    "WORKER_THREADS": 0,
}
FUNCTIONS = frozenset(
    """abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling char coalesce concat
    concat_ws cos cosh count cume_dist current_date current_time current_timestamp date
    datetime degrees dense_rank exp first_value floor format glob group_concat hex ifnull iif
    instr julianday lag last_value lead length like likelihood likely ln log log10 log2 lower
    ltrim match max min mod nth_value ntile nullif octet_length percent_rank pi pow power
    printf quote radians rank replace round row_number rtrim sign sin sinh soundex sqrt
    strftime string_agg substr substring sum tan tanh time timediff total trim trunc typeof
    unicode unixepoch unlikely upper -> ->>""".split()
)  # and all of JSON's; not: random, randomblob, zeroblob, load_extension
TABLE_FUNCTIONS = frozenset(("json_each", "json_tree"))
# A query whose result depends on when it runs.
CLOCK = re.compile(
    r"now|current_|\b(?:date|time|datetime|julianday|unixepoch)\s*\(\s*\)|strftime\s*\([^,()]*\)",
    re.IGNORECASE,
)


class Rejected(Exception):
    """A query without a result; `outcome` as in pool.Grade, the text says why."""

    def __init__(self, outcome, why):
        super().__init__(why)
        self.outcome = outcome


class Script(str):
    """A database given as the SQL script that creates it, in memory. Trusted: ours, never a
    model's.
    """


class Result(NamedTuple):
    columns: int
    rows: list


@lru_cache(8192)  # parsing costs about a millisecond, and samples of a prompt repeat each other
def refusal(query):
    """None if the text is one SELECT, else (outcome, why)."""
    if len(query) > MAX_QUERY or "\0" in query:
        return "unsafe", f"{len(query)} characters, at most {MAX_QUERY}, none of them NUL"
    if query.encode(errors="replace").decode() != query:
        return "unsafe", "not valid Unicode"
    sqlglot = load("sqlglot", warm)
    try:
        parsed = sqlglot.parse(query, read="sqlite")
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        return "unparsable", str(error)[:200]
    statements = [s for s in parsed if s and not isinstance(s, sqlglot.exp.Semicolon)]
    if len(statements) == 1 and isinstance(statements[0], sqlglot.exp.Query):
        return None
    words = sqlglot.exp.Condition | sqlglot.exp.Alias  # that are no statement
    if all(isinstance(s, words) for s in statements):
        return "unparsable", "no statement"
    return "unsafe", "wanted exactly one SELECT"


def warm():
    """sqlglot's first parse takes ten times as long as those after it."""
    refusal(
        "SELECT a, count(*) FROM t JOIN u ON t.i = u.i WHERE b > 2 GROUP BY a ORDER BY 2 DESC "
        "LIMIT 1"
    )


class Database:
    """One locked-down connection. `seed` not None: a perturbed copy in memory (see `thin_out`)."""

    def __init__(self, source, seed=None):
        c = self.connection = open_database(source)
        if seed is not None:
            self.connection = open_database(Script())
            c.backup(self.connection)
            c.close()
            c = self.connection
            thin_out(c, seed)
        names = c.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        self.tables = TABLE_FUNCTIONS | {name for (name,) in names}
        for name in self.tables:  # a virtual table is declared now: it takes rights no query has
            with suppress(sqlite3.Error):
                c.execute(f"SELECT 1 FROM {quoted(name)} LIMIT 0")
        for name, value in LIMITS.items():
            c.setlimit(getattr(sqlite3, f"SQLITE_LIMIT_{name}"), value)
        self.trusted, self.denied, self.stop = False, None, 0.0
        c.set_authorizer(self._authorize)
        c.set_progress_handler(lambda: time.monotonic() > self.stop, 10_000)

    def _authorize(self, action, first, second, *_):
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and (first in self.tables or not second or self.trusted):
            # Not the schema, pragma_*, dbstat. No column: count(*), also of a common table
            # expression.
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (
            self.trusted or second.lower() in FUNCTIONS or second.lower().startswith("json")
        ):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA and first == "data_version":  # FTS5 asks for it
            return sqlite3.SQLITE_OK
        self.denied = f"action {action} on {first or second}"
        return sqlite3.SQLITE_DENY

    def run(self, query, seconds, trusted):
        self.trusted, self.denied, self.stop = trusted, None, time.monotonic() + seconds
        rows, size = [], 0
        try:
            cursor = self.connection.execute(one_statement(query))
            while batch := cursor.fetchmany(1000):
                rows += batch
                cells = itertools.chain.from_iterable(batch)
                size += sum(len(cell) for cell in cells if isinstance(cell, str | bytes))
                if len(rows) > MAX_ROWS or size > MAX_BYTES:
                    raise Rejected("timeout", f"more than {MAX_ROWS} rows or {MAX_BYTES >> 20} MiB")
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: no Unicode, NUL
            late = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
            outcome = "timeout" if late else "unsafe" if self.denied else "wrong"
            raise Rejected(outcome, f"{error}{self.denied and ': ' + self.denied or ''}") from None
        return Result(len(cursor.description or ()), rows)


def faults(database, golds, seconds):
    """What is wrong with each gold query on its database: it fails, is too slow, gives no row; or
    None. Slow is measured in steps, about as many as a second has: the same on every machine.
    """
    try:
        opened = Database(database)
        if opened.tables <= TABLE_FUNCTIONS:
            raise sqlite3.DatabaseError("it has no tables")
    except sqlite3.Error as error:
        why = f"needs {database}: {error}; download it again (`git lfs pull` if it is a pointer)"
        return [why] * len(golds)
    found, calls = [], itertools.count()
    opened.connection.set_progress_handler(lambda: next(calls) > 2500 * seconds, 10_000)
    for gold in golds:
        calls, why = itertools.count(), None
        try:
            if not opened.run(gold, math.inf, trusted=True).rows:
                why = "has a gold query that gives no row, as any empty query does"
        except Rejected as error:
            why = f"has a gold query that fails ({error.outcome}): {error}"
        found.append(why)
    opened.connection.close()
    return found


def open_database(source):
    """A connection, nothing locked yet. A file is opened read-only and immutable: SQLite takes no
    locks and makes no journal beside it.
    """
    uri = ":memory:"
    if not isinstance(source, Script):
        uri = f"file:{quote(str(source))}?mode=ro&immutable=1"
    c = sqlite3.connect(uri, uri=True, cached_statements=0)
    c.text_factory = lambda data: data.decode(errors="replace")  # BIRD's files are not all UTF-8
    c.execute("PRAGMA temp_store = MEMORY")  # a large sort would write a temporary file
    if isinstance(source, Script):
        c.executescript(source)
    return c


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def one_statement(query):
    """The query without semicolons behind it: Python would take `;;` for a second statement."""
    for found in re.finditer(";", query):
        if sqlite3.complete_statement(query[: found.end()]):
            return query[: found.start()] + query[found.start() :].replace(";", " ")
    return query


def tables(connection):
    """(name, CREATE statement) of its tables and virtual tables, but not of those in which a
    virtual table keeps its content.
    """
    return connection.execute(
        "SELECT m.name, m.sql FROM sqlite_master m JOIN pragma_table_list(m.name) t WHERE "
        "t.schema = 'main' AND t.type IN ('table', 'virtual') AND m.name NOT LIKE "
        "'sqlite\\_%' ESCAPE '\\' ORDER BY m.rowid"
    ).fetchall()


_database = lru_cache(128)(Database)


class _Results(OrderedDict):
    """(database, query, ...) -> Result or Rejected; the oldest leave when there are more than
    500,000 rows in all.
    """

    rows = 0

    def keep(self, key, value):
        self[key] = value
        self.rows += len(getattr(value, "rows", ())) + 1
        while self.rows > 500_000:
            self.rows -= len(getattr(self.popitem(last=False)[1], "rows", ())) + 1


_results = _Results()


def run(database, query, *, seconds=4.0, trusted=False, seed=None):
    """Rows of a query -> Result; raises Rejected. trusted: a gold query, any function. seed: on
    that perturbed copy.
    """
    key = (database, query, trusted, seed)
    found = _results.get(key)
    if found is None:
        try:
            if not trusted and (refused := refusal(query)):
                raise Rejected(*refused)
            found = _database(database, seed).run(query, seconds, trusted)
        except Rejected as rejected:
            if rejected.outcome == "timeout":  # perhaps the machine was busy: not remembered
                raise
            found = rejected
        if not CLOCK.search(query):
            _results.keep(key, found)
    if isinstance(found, Rejected):
        raise found
    return found


def thin_out(connection, seed):
    """Delete a random part of every table's rows, a quarter to three quarters of them, then every
    row whose foreign key lost its parent (what never had one stays).

    Deleting keeps what queries may rely on (keys, uniqueness, dependencies between columns), so a
    query that means the same as the gold query still agrees, while constants and lucky matches are
    found out.
    """

    def change(statement):
        """-> rows deleted; none where the table refuses (a trigger, no such parent): it stays."""
        try:
            return c.execute(statement).rowcount
        except sqlite3.Error:
            return 0

    c, rng, lost = connection, random.Random(seed), []
    c.create_function("draw", 0, rng.random)
    keys = c.execute(  # a key that names no columns means the parent's primary key
        'SELECT m.name, f.id, f."table", f."from", coalesce(f."to", p.name) AS parent FROM '
        "sqlite_master m JOIN pragma_foreign_key_list(m.name) f LEFT JOIN "
        "pragma_table_info(f.\"table\") p ON p.pk = f.seq + 1 WHERE m.type = 'table' AND parent IS "
        "NOT NULL ORDER BY 1, 2, f.seq"
    ).fetchall()
    groups = itertools.groupby(keys, key=lambda key: key[:3])
    for i, ((child, _, parent), pairs) in enumerate(groups):
        columns = list(zip(*pairs, strict=True))[3:]
        mine, theirs = (", ".join(map(quoted, names)) for names in columns)
        parents = f"SELECT {theirs} FROM main.{quoted(parent)}"
        change(f"CREATE TEMP TABLE parents_{i} AS {parents}")
        lost.append(
            f"DELETE FROM main.{quoted(child)} WHERE ({mine}) IN "
            f"(SELECT * FROM temp.parents_{i} EXCEPT {parents})"
        )
    for table, _ in tables(c):
        change(f"DELETE FROM main.{quoted(table)} WHERE draw() < {rng.uniform(0.25, 0.75)}")
    while sum(map(change, lost)):
        pass
    for i in range(len(lost)):
        change(f"DROP TABLE temp.parents_{i}")
    c.commit()
