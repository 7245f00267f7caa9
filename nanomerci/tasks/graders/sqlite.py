"""Running a query that a model wrote on a SQLite database, without trusting it.

A query passes, in this order: a length limit; sqlglot, which must see exactly one statement, a
SELECT or WITH ... SELECT; a read-only, immutable connection; an authorizer that permits reading the
database's own tables, functions from a list, and recursion; SQLite's own limits; a progress handler
with a deadline; caps on rows and bytes. All of it runs in a worker of grading.Pool, whose deadline
and memory limit hold where one opcode outruns the progress handler.

A database is named by the path of its SQLite file, or is a Script. Connections and results are
cached in the worker.
"""

import random
import sqlite3
import time
from collections import OrderedDict
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
    "VARIABLE_NUMBER": 0,
    "TRIGGER_DEPTH": 0,
    "WORKER_THREADS": 0,
}
FUNCTIONS = frozenset(
    """abs acos asin atan atan2 avg ceil ceiling char coalesce concat concat_ws cos count cume_dist
    current_date current_time current_timestamp date datetime degrees dense_rank exp first_value floor format glob group_concat
    hex ifnull iif instr json json_array_length json_extract json_type julianday lag last_value lead length like likelihood
    likely ln log log10 log2 lower ltrim max min mod nth_value ntile nullif octet_length percent_rank pi pow power printf quote
    radians rank replace round row_number rtrim sign sin sqrt strftime string_agg substr substring sum tan time timediff total
    trim trunc typeof unicode unixepoch unlikely upper -> ->>""".split()
)  # not: random, randomblob, zeroblob, load_extension


class Rejected(Exception):
    """A query without a result; `outcome` as in grading.Grade, the text says why."""

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
        statements = [
            s
            for s in sqlglot.parse(query, read="sqlite")
            if s and not isinstance(s, sqlglot.exp.Semicolon)
        ]
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        return "unparsable", str(error)[:200]
    if len(statements) == 1 and isinstance(statements[0], sqlglot.exp.Query):
        return None
    if all(
        isinstance(s, sqlglot.exp.Condition | sqlglot.exp.Alias) for s in statements
    ):  # words that are no statement
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
        if isinstance(source, Script) or seed is not None:
            self.connection = sqlite3.connect(":memory:", cached_statements=0)
            if isinstance(source, Script):
                self.connection.executescript(source)
            else:
                original = open_file(source)
                original.backup(self.connection)
                original.close()
            if seed is not None:
                thin_out(self.connection, seed)
        else:
            self.connection = open_file(source)
        c = self.connection
        c.text_factory = lambda data: data.decode(
            errors="replace"
        )  # BIRD's files are not all UTF-8
        c.execute("PRAGMA temp_store = MEMORY")  # a large sort would write a temporary file
        self.tables = {
            name
            for (name,) in c.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
            )
        }
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
        if action == sqlite3.SQLITE_FUNCTION and (second.lower() in FUNCTIONS or self.trusted):
            return sqlite3.SQLITE_OK
        self.denied = f"action {action} on {first or second}"
        return sqlite3.SQLITE_DENY

    def run(self, query, seconds, trusted):
        self.trusted, self.denied, self.stop = trusted, None, time.monotonic() + seconds
        rows, size = [], 0
        try:
            cursor = self.connection.execute(query)
            while batch := cursor.fetchmany(1000):
                rows += batch
                size += sum(
                    len(cell) for row in batch for cell in row if isinstance(cell, str | bytes)
                )
                if len(rows) > MAX_ROWS or size > MAX_BYTES:
                    raise Rejected("timeout", f"more than {MAX_ROWS} rows or {MAX_BYTES >> 20} MiB")
        except (
            sqlite3.Error,
            sqlite3.Warning,
        ) as error:  # Warning: a second statement behind the first
            late = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT
            outcome = "timeout" if late else "unsafe" if self.denied else "wrong"
            raise Rejected(outcome, f"{error}{self.denied and ': ' + self.denied or ''}") from None
        return Result(len(cursor.description or ()), rows)


def open_file(path):
    """Read-only; immutable: SQLite takes no locks and makes no journal beside the file."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, cached_statements=0
    )


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
        _results.keep(key, found)
    if isinstance(found, Rejected):
        raise found
    return found


def thin_out(connection, seed):
    """Delete a random half of every table's rows, then every row whose foreign key lost its parent.

    Deleting keeps what queries may rely on (keys, uniqueness, dependencies between columns), so a
    query that means the same as the gold query still agrees, while constants and lucky matches are
    found out.
    """
    c = connection
    tables = [
        name
        for (name,) in c.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
    ]
    keys = [
        (table, key[3], key[2], key[4])
        for table in tables
        for key in c.execute(f'PRAGMA foreign_key_list("{table}")')
    ]
    for table in tables:
        try:
            ids = [i for (i,) in c.execute(f'SELECT rowid FROM "{table}" ORDER BY rowid')]
        except sqlite3.OperationalError:  # WITHOUT ROWID: such a table stays whole
            continue
        gone = random.Random(f"{seed} {table}").sample(ids, len(ids) // 2)
        c.executemany(f'DELETE FROM "{table}" WHERE rowid = ?', [(i,) for i in gone])
    deleted = 1
    while deleted:
        deleted = sum(
            c.execute(
                f'DELETE FROM "{table}" WHERE "{column}" IS NOT NULL AND "{column}" NOT IN '
                f'(SELECT "{other or column}" FROM "{parent}" WHERE "{other or column}" IS NOT '
                "NULL)"
            ).rowcount
            for table, column, parent, other in keys
            if parent in tables
        )
    c.commit()
