"""Faults that real data and other evaluators showed in the SQL grader and its loader, each as a
kind with several members. The right verdicts are argued for in docs/sql-grading.md.
"""

import itertools
import json
import os
import random
import sqlite3
import time
from collections import Counter

import pytest

from nanomerci.tasks import sql
from nanomerci.tasks.graders import sqlite
from nanomerci.tasks.graders.pool import Grade, Pool
from nanomerci.tasks.graders.sqlite import Rejected, Result, Script


def insert(table, rows):
    """INSERT statements; the rows' reprs are SQL literals, but for None."""
    cells = (", ".join("NULL" if x is None else repr(x) for x in row) for row in rows)
    return "".join(f"INSERT INTO {table} VALUES ({row});\n" for row in cells)


def fence(query):
    return f"```sql\n{query}\n```"


def outcome(database, gold, query, match="bird", **options):
    return sql.grade(database, gold, fence(query), match, **options).outcome


def table(*values):
    return Result(1, [(value,) for value in values])


# ---- numbers: rounding is forgiven, a different number is not


SHOP = Script(
    "CREATE TABLE orders (id INTEGER PRIMARY KEY, placed TEXT, total REAL, page REAL, at REAL);"
    + insert(
        "orders",
        [
            (i, f"2021-0{1 + i % 9}-1{i % 10} 1{i % 10}:30:00", i * 1.37, 4000009166.0 + 3 * i, at)
            for i, at in enumerate(range(1_700_000_000_000_000, 1_700_000_000_000_030))
        ],
    )
)


@pytest.mark.parametrize(
    "gold, query",
    [
        # what stood in the files
        ("julianday(placed)", "julianday(date(placed))"),
        ("julianday(placed)", "julianday(placed, '+1 day')"),
        ("julianday(placed)", "julianday(placed) + 0.5"),
        ("julianday(placed)", "julianday(placed) + 2"),
        ("page", "4000009200"),
        ("page", "4000010000.0"),
        # and what did not
        ("julianday(placed)", "julianday(placed, '+1 minute')"),
        ("page", "page + 1"),
        ("page", "page * 1.0000000001"),
        ("at", "at + 1"),
        ("CAST(at AS INTEGER)", "at + 1"),
        ("1e9 + total", "1e9 + total + 0.01"),
        ("total / 3", "round(total / 3, 6)"),
        ("total - 1.37 * id", "1e-10"),
        ("sum(page)", "sum(page) - 1"),
        ("avg(page)", "round(avg(page))+ 1"),
    ],
)
@pytest.mark.parametrize("match", ["bird", "spider"])
def test_another_number_is_wrong(gold, query, match):
    gold, query = (f"SELECT {one} FROM orders WHERE id > 1" for one in (gold, query))
    assert outcome(SHOP, gold, query, match) == "wrong"
    assert outcome(SHOP, gold, gold, match) == "right"


@pytest.mark.parametrize(
    "gold, query",
    [
        ("avg(total)", "sum(total) / count(*)"),
        ("sum(total * 1.1)", "sum(total + total * 0.1)"),
        ("sum(total) * 100.0 / 7", "100.0 / 7 * sum(total)"),
        ("count(*) / 3.0", "count(*) * (1 / 3.0)"),
        ("0.3", "0.1 + 0.2"),
        ("max(id) * 3", "max(id) * 0.1 * 30"),  # an integer and what is nearly it
        ("sum(total) * 1e12", "sum(total * 1e12)"),
    ],
)
@pytest.mark.parametrize("match", ["bird", "spider"])
def test_the_same_number_computed_otherwise_is_right(gold, query, match):
    gold, query = (f"SELECT {one} FROM orders" for one in (gold, query))
    assert outcome(SHOP, gold, query, match) == "right"


@pytest.mark.parametrize("step", [1 + 3e-13, 1 + 1e-12, 1 + 1e-6])
def test_a_chain_of_near_numbers_is_not_one_number(step):
    chain = table(*(0.7 * step**i for i in range(50)))
    assert not sql.same_set(chain, table(0.7)) and not sql.same_set(table(0.7), chain)
    assert not sql.same_set(chain, table(*(0.7 * step**i for i in range(0, 50, 10))))
    assert sql.same_set(chain, chain)


def test_noise_within_a_result_does_not_count_either():
    noisy = Result(2, [(0.1 + 0.2, "a"), (0.3, "a"), (0.3, "b")])
    assert sql.same_set(noisy, Result(2, [(0.3, "b"), (0.3, "a")]))
    assert not sql.same_result(noisy, Result(2, [(0.3, "b"), (0.3, "a"), (0.3, "b")]))
    three = [0.3 - 1e-16, 0.3, 0.3 + 1e-16]
    assert len(set(three)) == 3 and sql.same_set(table(*three), table(three[2]))
    assert sql.same_result(table(three[0], three[2]), table(three[1], three[1]))


def test_infinity_is_only_itself():
    assert not sql.same_set(table(float("inf")), table(1e308))
    assert sql.same_set(table(float("inf"), 0.1 + 0.2), table(0.3, float("inf")))


# ---- Spider's comparison


def by_every_permutation(gold, got, ordered):
    """The definition: some order of the columns makes them the same list, or multiset, of rows."""
    kind = list if ordered else Counter
    return any(
        kind(gold.rows) == kind([tuple(row[k] for k in order) for row in got.rows])
        for order in itertools.permutations(range(got.columns))
    )


@pytest.mark.parametrize("ordered", [False, True])
def test_spider_is_what_trying_every_permutation_gives(ordered):
    seen = Counter()
    for seed in range(600):
        rng = random.Random(seed)
        columns, count = rng.randint(1, 4), rng.randint(2, 6)
        rows = [tuple(rng.choices("abc", k=columns)) for _ in range(count)]
        order = rng.sample(range(columns), columns)
        other = [tuple(row[k] for k in order) for row in rows]
        if rng.random() < 0.5:
            rng.shuffle(other)
        if rng.random() < 0.5:  # swap two cells of a column: the columns stay, the rows change
            k, i, j = rng.randrange(columns), rng.randrange(count), rng.randrange(count)
            cells = [list(row) for row in other]
            cells[i][k], cells[j][k] = cells[j][k], cells[i][k]
            other = [tuple(row) for row in cells]
        gold, got = Result(columns, rows), Result(columns, other)
        expected = by_every_permutation(gold, got, ordered)
        assert sql.same_result(gold, got, ordered) is expected, seed
        seen[expected] += 1
    assert min(seen.values()) > 50


WIDE = {  # kind of cell -> a value
    "numbers": lambda rng: rng.random(),
    "few": lambda rng: rng.randint(0, 1),
    "words": lambda rng: f"w{rng.randint(0, 50)}",
}


def wide(cell, right):
    """A job: 30 columns x 5,000 rows against the same in another order, or with a column moved."""
    rng = random.Random(cell)
    rows = [tuple(WIDE[cell](rng) for _ in range(30)) for _ in range(5000)]
    first = [row[0] for row in rows]
    moved = first if right else first[1:] + first[:1]
    other = [(*row[:0:-1], x) for row, x in zip(rows, moved, strict=False)]
    rng.shuffle(other)
    same = sql.same_result(Result(30, rows), Result(30, other))
    return Grade(float(same), "right" if same else "wrong")


def test_wide_results_are_compared_within_the_deadline():
    """To compare each column with each, both sorted anew, took minutes."""
    jobs = [(wide, cell, right) for cell in WIDE for right in (True, False)]
    with Pool(workers=1, deadline=10.0) as pool:
        outcomes = [grade.outcome for grade in pool.grade(jobs)]
        assert outcomes == ["right", "wrong"] * len(WIDE), pool.last_error


@pytest.mark.parametrize(
    "query, ordered",
    [
        ("SELECT a FROM t ORDER BY a; -- x", True),
        ("SELECT a FROM t ORDER BY a;;", True),
        ("SELECT a FROM t /* (no */ ORDER\n BY count(*)", True),
        ("SELECT ')' FROM t ORDER BY lower(a) DESC LIMIT 1", True),
        ("WITH x AS (SELECT a FROM t) SELECT a FROM x ORDER BY (SELECT 1)", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT a FROM t -- ORDER BY a", False),
        ("SELECT 'ORDER BY a', \"order by\" FROM t", False),
        ("SELECT a, rank() OVER (PARTITION BY (b) ORDER BY b) FROM t", False),
        ("SELECT a FROM t WHERE b IN (SELECT b FROM u ORDER BY (c)) UNION SELECT 1", False),
    ],
)
def test_outer_order_by(query, ordered):
    assert sql.is_ordered(query) is ordered


# ---- what may be asked


VIRTUAL = Script(
    "CREATE VIRTUAL TABLE doc USING fts5(title, body);"
    "CREATE VIRTUAL TABLE note USING fts4(body);"
    "CREATE VIRTUAL TABLE box USING rtree(id, a, b);"
    "CREATE TABLE j (id INTEGER PRIMARY KEY, data TEXT);"
    + insert("doc", [("one", "the fox"), ("two", "a dog"), ("three", "fox trot")])
    + insert("note", [("the fox",), ("a dog",)])
    + insert("box", [(i, float(i), float(i + 2)) for i in range(1, 9)])
    + insert("j", [(i, json.dumps({"a": i, "b": [i, i + 1]})) for i in range(1, 5)])
)


@pytest.fixture(scope="module", params=["memory", "file"])
def virtual(request, tmp_path_factory):
    if request.param == "memory":
        return VIRTUAL
    path = tmp_path_factory.mktemp("virtual") / "v.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {VIRTUAL} COMMIT;")
    connection.close()
    return str(path)


@pytest.mark.parametrize(
    "gold, query",
    [
        # what stood in the files
        ("SELECT title FROM doc WHERE body LIKE '%fox%'", "SELECT title FROM doc('fox')"),
        (
            "SELECT title FROM doc WHERE body LIKE '%fox%'",
            "SELECT title FROM doc WHERE doc = 'fox'",
        ),
        (
            "SELECT title FROM doc WHERE body MATCH 'fox'",
            "SELECT title FROM doc WHERE doc MATCH 'fox'",
        ),
        ("SELECT id FROM box WHERE a < 2", "SELECT 1"),
        ("SELECT json_group_array(id) FROM j", "SELECT json_array(1, 2, 3, 4)"),
        (
            "SELECT id, json_extract(data, '$.a') FROM j",
            "SELECT id, CASE WHEN json_valid(data) THEN json_extract(data, '$.a') END FROM j",
        ),
        # and what did not
        (
            "SELECT title FROM doc('fox') ORDER BY rank",
            "SELECT title FROM doc('fox') ORDER BY bm25(doc)",
        ),
        (
            "SELECT body FROM note WHERE body MATCH 'fox'",
            "SELECT body FROM note WHERE body LIKE '%fox%'",
        ),
        ("SELECT count(*) FROM note", "SELECT count(*) - 6 FROM box"),
        (
            "SELECT max(id) FROM box WHERE b < 7",
            "SELECT id FROM box ORDER BY b < 7 DESC, id DESC LIMIT 1",
        ),
        (
            "SELECT j.id, value FROM j, json_each(data, '$.b')",
            "SELECT id, id FROM j UNION ALL SELECT id, id + 1 FROM j",
        ),
        ("SELECT count(*) FROM j, json_tree(data) WHERE atom > 2", "SELECT 3 + 2 + 2"),
        ("SELECT value FROM json_each('[1, 2]')", "SELECT 1 UNION SELECT 2"),
        ("SELECT json_object('a', id) FROM j", "SELECT json_remove(data, '$.b') FROM j"),
        ("SELECT json_set(data, '$.b', 0) FROM j", "SELECT json_patch(data, '{\"b\": 0}') FROM j"),
        (
            "SELECT json_group_object(id, 1) FROM j",
            'SELECT json_insert(\'{"1":1,"2":1,"3":1}\', \'$.4\', 1)',
        ),
    ],
)
@pytest.mark.parametrize("match", ["bird", "spider"])
def test_virtual_tables_and_json(virtual, gold, query, match):
    assert outcome(virtual, gold, query, match) == "right"
    assert outcome(virtual, query, gold, match) == "right"


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO doc(doc) VALUES ('rebuild')",
        "DELETE FROM box",
        "SELECT * FROM pragma_data_version",
        "PRAGMA data_version",
        "SELECT fts5_source_id()",
        "SELECT rtreecheck('box')",
        "SELECT sql FROM sqlite_master",
        "SELECT * FROM generate_series(1, 3)",
        "SELECT * FROM dbstat",
        "SELECT fts3_tokenizer('simple')",
    ],
)
def test_virtual_tables_open_no_door(virtual, query):
    assert outcome(virtual, "SELECT 1", query) in ("unsafe", "wrong")
    with pytest.raises(Rejected):
        sqlite.run(virtual, query)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1;;",
        "SELECT 1 ; ;\n",
        "SELECT 1;; -- done",
        "SELECT 1; /* done; */ ;",
        ";SELECT 1",
        "SELECT 1 -- one;\n;",
        "SELECT 1 WHERE ';' = ';' ;;",
    ],
)
def test_semicolons_are_no_second_statement(query):
    assert outcome(SHOP, "SELECT 1", query) == "right"
    assert outcome(SHOP, query, "SELECT 1") == "right"


@pytest.mark.parametrize("second", ["SELECT 1", "DROP TABLE orders", "UNION SELECT 1", "WHERE 1"])
def test_a_second_statement_is_refused(second):
    assert outcome(SHOP, "SELECT 1", f"SELECT 1; {second}") in ("unsafe", "unparsable")


@pytest.mark.parametrize(
    "text, query",
    [
        ("```sql\nA\n```\nLet me double check:\n```sql\nSELECT", "A"),  # stood in the files
        ("```sql\nA\n```\n```sql\nB\n``` and now ```SQL\n", "B"),
        ("```sql\nA\n```sql\nB\n```", "B"),
        ("```sql\nA\n```\n```python\nx\n``` ```sql", "A"),
        ("```sql\nA\n```\n```sql\nB\n```\n```sqlite\nC\n```", "B"),
        ("```sql A ``` `x` ``` y", "A"),
        ("```sql\nA\n```\n```sql\n```", None),
        ("```sql\nA", None),
        ("```sql\nA\n```sql", None),
        ("sql\nA\n```", None),
    ],
)
def test_the_last_closed_fence_counts(text, query):
    assert sql.answer(text) == query


@pytest.mark.parametrize(
    "query",
    [
        "SELECT julianday('now')",
        "SELECT strftime('%f', 'now')",
        "SELECT strftime('%f')",
        "SELECT julianday ( )",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT date('NOW', '-1 day')",
        "SELECT id FROM orders WHERE placed < datetime()",
    ],
)
def test_now_is_not_remembered(query):
    first = sqlite.run(SHOP, query)
    assert not [key for key in sqlite._results if key[:2] == (SHOP, query)]
    if "%f" in query or "julianday" in query:  # milliseconds
        time.sleep(0.01)
        assert sqlite.run(SHOP, query) != first


@pytest.mark.parametrize(
    "query", ["SELECT date(placed) FROM orders", "SELECT strftime('%Y', placed) FROM orders"]
)
def test_dates_of_the_data_are_remembered(query):
    sqlite.run(SHOP, query)
    assert [key for key in sqlite._results if key[:2] == (SHOP, query)]


# ---- partial credit


PAIR = Script(
    "CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, town TEXT);"
    "CREATE TABLE pet (owner INTEGER, kind TEXT, price REAL);"
    + insert("owner", [(i, f"n{i}", f"t{i % 3}") for i in range(6)])
    + insert("pet", [(i % 6, f"k{i % 4}", i / 3) for i in range(9)])
)
JOINED = "SELECT name, kind FROM owner JOIN pet ON owner.id = pet.owner"


@pytest.mark.parametrize(
    "gold, query",
    [
        (JOINED, "SELECT name, kind FROM owner, pet"),
        (JOINED, "SELECT name, kind FROM owner CROSS JOIN (SELECT DISTINCT kind FROM pet)"),
        (JOINED, f"{JOINED} UNION ALL {JOINED} LIMIT 17"),
        ("SELECT name, town FROM owner", "SELECT a.name, b.town FROM owner a, owner b"),
        (
            "SELECT price, kind FROM pet",
            "SELECT a.price, b.kind FROM pet a, pet b WHERE a.price < 9",
        ),
        ("SELECT town, count(*) FROM owner GROUP BY town", "SELECT town, 2 FROM owner"),
    ],
)
@pytest.mark.parametrize("match", ["bird", "spider"])
def test_no_partial_credit_for_a_cross_join(gold, query, match):
    if match == "spider" or outcome(PAIR, gold, query) == "wrong":
        assert sql.grade(PAIR, gold, fence(query), match, partial=True).reward == 0


def test_partial_credit_is_still_paid_for_columns():

    def credit(gold, query):
        return pytest.approx(sql.grade(PAIR, gold, fence(query), partial=True).reward)

    assert credit(JOINED, JOINED.replace("name, kind", "kind")) == 0.8 / 2
    assert (
        credit("SELECT price / 7, kind FROM pet", "SELECT price * (1 / 7.0), price FROM pet") == 0.2
    )
    assert credit("SELECT name, town FROM owner", "SELECT town, name FROM owner") == 0.8


# ---- perturbed copies


def copy_of(script, seed):
    """A perturbed copy, with nothing locked."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    sqlite.thin_out(connection, seed)
    return connection


@pytest.mark.parametrize("size", [4, 10, 40, 200])
def test_tables_of_equal_size_do_not_stay_so(size):
    rows = [(i,) for i in range(size)]
    script = Script(
        "CREATE TABLE a (x); CREATE TABLE b (x);" + insert("a", rows) + insert("b", rows)
    )
    sizes = [
        copy_of(script, seed).execute("SELECT (SELECT count(*) FROM a), count(*) FROM b").fetchone()
        for seed in range(200)
    ]
    # equal counts have a chance of less than 1 / 3 already for tables of four rows
    assert sum(a == b for a, b in sizes) < 200 / 2
    # and the share that goes lies between 1/4 and 3/4, 1/2 on average; 4 standard errors
    # of a mean of 400 shares, each with a variance of at most 1/48 + 1/(4 size)
    bound = 4 * ((1 / 48 + 1 / (4 * size)) / 400) ** 0.5
    assert abs(sum(a + b for a, b in sizes) / (400 * size) - 0.5) < bound
    if size == 200:  # the share itself varies: with a fair coin for each row these are 4 sigma
        assert min(map(min, sizes)) < 70 and max(map(max, sizes)) > 130
    assert outcome(script, "SELECT count(*) FROM a", "SELECT count(*) FROM b", copies=20) == "wrong"


# what declares the key -> the parent's table, its columns, the child's, how they are joined
PARENTS = {
    "implied": ("parent", "id INTEGER PRIMARY KEY, y)", "pid REFERENCES parent", "pid = id"),
    "named": ("parent", "id, y UNIQUE)", "pid REFERENCES parent (y)", "pid = y"),
    "other case": ("Parent", "ID INTEGER PRIMARY KEY, y)", "pid REFERENCES PARENT", "pid = id"),
    "quotes": ('"par""ent"', '"i d" PRIMARY KEY, y)', 'pid REFERENCES "par""ent"', 'pid = "i d"'),
    "no rowid": ("parent", "id PRIMARY KEY, y) WITHOUT ROWID", "pid REFERENCES parent", "pid = id"),
    "composite": (
        "parent",
        "id, y, PRIMARY KEY (y, id))",
        "pid, two AS (pid) STORED, FOREIGN KEY (two, pid) REFERENCES parent",
        "pid = id AND two = y",
    ),
}


@pytest.mark.parametrize("kind", PARENTS)
def test_children_leave_with_their_parents(kind):
    """So the join and the plain table still agree; what was an orphan before may stay."""
    parent, columns, mine, on = PARENTS[kind]
    script = f"CREATE TABLE {parent} ({columns}; CREATE TABLE child (cid INTEGER, {mine});"
    script += insert(parent, [(i, i) for i in range(40)])
    script += "".join(f"INSERT INTO child (cid, pid) VALUES ({i}, {i});" for i in range(40))
    plain = "SELECT count(*) FROM child"
    joined = f"SELECT count(*) FROM child JOIN {parent} ON {on}"
    assert outcome(Script(script), plain, joined, copies=8) == "right"
    counts = {copy_of(script, seed).execute(plain).fetchone()[0] for seed in range(8)}
    assert len(counts) > 2 and max(counts) < 40
    script += "".join(f"INSERT INTO child (cid, pid) VALUES ({i}, {i});" for i in range(40, 140))
    assert copy_of(script, 0).execute(f"{plain} WHERE cid >= 40").fetchone()[0] > 10


def test_children_of_their_own_table_leave_too():
    script = "CREATE TABLE child (cid INTEGER PRIMARY KEY, pid REFERENCES child);"
    script += insert("child", [(i, i // 2) for i in range(60)])
    joined = "SELECT count(*) FROM child a JOIN child b ON a.pid = b.cid"
    assert outcome(Script(script), "SELECT count(*) FROM child", joined, copies=8) == "right"


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE child (cid, pid REFERENCES nowhere (id));",
        "CREATE TABLE parent (id); CREATE TABLE child (cid, pid REFERENCES parent (none));",
        "CREATE TABLE parent (id); CREATE TABLE child (cid, pid REFERENCES parent);",
        "CREATE TABLE child (cid, pid); CREATE TRIGGER t BEFORE DELETE ON child "
        "BEGIN SELECT raise(ABORT, 'no'); END;",
    ],
)
def test_keys_that_lead_nowhere_and_tables_that_refuse(script):
    script += insert("child", [(i, i) for i in range(20)])
    left = [
        len(copy_of(script, seed).execute("SELECT * FROM child").fetchall()) for seed in range(4)
    ]
    assert (set(left) == {20}) is ("TRIGGER" in script) and min(left) > 0


@pytest.mark.parametrize(
    "gold, query",
    [
        ("SELECT title FROM doc WHERE body LIKE '%fox%'", "SELECT title FROM doc('fox')"),
        (
            "SELECT body FROM note WHERE body MATCH 'dog'",
            "SELECT body FROM note WHERE body LIKE '%dog'",
        ),
        ("SELECT id FROM box WHERE a > 3", "SELECT id FROM box WHERE a >= 4.0"),
        ("SELECT count(*) FROM doc", "SELECT count(title) FROM doc"),
    ],
)
def test_virtual_tables_are_perturbed_too(virtual, gold, query):
    assert outcome(virtual, gold, query, copies=8) == "right"
    (value,), *_ = sqlite.run(VIRTUAL, gold).rows
    assert outcome(virtual, gold, f"SELECT {value!r}", copies=8) == "wrong"


def test_names_with_quotes():
    script = 'CREATE TABLE "a ""b"" c" ("x""y" INTEGER, "order" TEXT);'
    script = Script(script + insert('"a ""b"" c"', [(i, f"v{i}") for i in range(20)]))
    gold = 'SELECT "order" FROM "a ""b"" c" WHERE "x""y" > 3'
    assert outcome(script, gold, gold.replace("> 3", ">= 4"), copies=5) == "right"
    assert outcome(script, gold, gold.replace("> 3", "> 2"), copies=5) == "wrong"
    assert "'v1'" in sql.schema(script, 9999)


def test_a_copy_on_which_the_gold_query_fails_says_nothing():
    script = Script("CREATE TABLE t (x);" + insert("t", [(i,) for i in range(8)]))
    # abs() of the least integer overflows, as soon as a row is missing
    gold = "SELECT abs(-9223372036854775807 - (count(*) < 8)) FROM t"
    with pytest.raises(Rejected):
        sqlite.run(script, gold, trusted=True, seed=0)
    assert outcome(script, gold, "SELECT 9223372036854775807 FROM t", copies=3) == "right"


# ---- the schema in the prompt


@pytest.mark.parametrize(
    "script",
    [
        'CREATE TABLE "order" ("group" INTEGER PRIMARY KEY, `select` TEXT, [from] REAL DEFAULT 1);',
        "CREATE TABLE t (a INTEGER, b AS (a * 2) STORED, c TEXT GENERATED ALWAYS AS (a || 'x'));",
        "CREATE TABLE p (x INTEGER PRIMARY KEY);"
        "CREATE TABLE c (y REFERENCES p, z REFERENCES p ON DELETE CASCADE);",
        "CREATE TABLE p (x, y, PRIMARY KEY (y, x)) WITHOUT ROWID;"
        "CREATE TABLE c (a, b, FOREIGN KEY (a, b) REFERENCES p);",
        "CREATE TABLE t (a CHECK (a <> ';'), b TEXT COLLATE NOCASE, c -- a; (bracket\n); -- x",
        'CREATE TABLE "a ""b"" c" ("x\ny" DATETIME, "it\'s" VARCHAR(20) NOT NULL);'
        'CREATE INDEX i ON "a ""b"" c" ("x\ny");',
        str(VIRTUAL),
        "CREATE TABLE t AS SELECT 1 AS a, 'x' AS `b c`; CREATE VIEW v AS SELECT a FROM t;",
        "CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT, b BLOB);"
        "INSERT INTO t VALUES (1, x'00'), (2, '\n');",
    ],
)
def test_the_schema_is_sql_that_makes_the_same_tables(script):
    shape = (
        "SELECT m.name, c.name, c.type, c.hidden, c.pk, f.* FROM sqlite_master m JOIN "
        "pragma_table_xinfo(m.name) c LEFT JOIN pragma_foreign_key_list(m.name) f WHERE "
        "m.type = 'table' AND m.name <> 'sqlite_sequence' ORDER BY 1, c.cid, f.id, f.seq"
    )
    shapes = []
    for text in (script, sql.schema(Script(script), 100_000), sql.schema(Script(script), 1)):
        with sqlite3.connect(":memory:") as connection:
            connection.executescript(text)
            shapes.append(connection.execute(shape).fetchall())
        connection.close()
    assert shapes[0] == shapes[1] == shapes[2] != []


def test_a_virtual_table_whose_module_is_missing_is_not_in_the_way(tmp_path):
    script = (
        "CREATE TABLE a (x); INSERT INTO a VALUES (1), (2); PRAGMA writable_schema = 1;"
        "INSERT INTO sqlite_master VALUES ('table', 'sp', 'sp', 0, 'CREATE VIRTUAL TABLE sp USING "
        "no_such_module()');"
    )
    path = str(database(tmp_path, script=script))
    assert sql.schema(path, 1000) == "CREATE TABLE a (x);\n-- x, e.g. 1, 2"
    assert outcome(path, "SELECT x FROM a", "SELECT x FROM a WHERE x", copies=3) == "right"
    assert sqlite.faults(path, ["SELECT x FROM a"], 1) == [None]


# ---- folders


QUESTION = {"db_id": "shop", "question": "How many?", "SQL": "SELECT count(*) FROM orders"}


def many(count, **changes):
    return [
        QUESTION | {"question_id": i, "question": f"How many more than {i}?"} | changes
        for i in range(count)
    ]


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(records if isinstance(records, str) else json.dumps(records))


def database(folder, name="shop", script=SHOP):
    path = folder / name / f"{name}.sqlite"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(f"BEGIN; {script} COMMIT;")
    connection.close()
    return path


@pytest.mark.parametrize("inside", ["", "MINIDEV", "mini_dev_data"])
@pytest.mark.parametrize("split", ["dev", "mini_dev_sqlite"])
def test_mini_dev_as_distributed(tmp_path, inside, split):
    folder = tmp_path / inside
    database(folder / "dev_databases")
    write(folder / "mini_dev_sqlite.json", many(5))
    for other in ("mysql", "postgresql"):
        write(folder / f"mini_dev_{other}.json", many(5, SQL="SELECT count(*) FROM `orders`"))
    write(folder / "dev_tables.json", [{"db_id": "shop", "table_names": ["orders"]}])
    write(folder / "mini_dev_sqlite_gold.sql", "SELECT 1\tshop")
    problems = sql.read_problems(tmp_path, split)
    assert [p.question for p in problems] == [one["question"] for one in many(5)]
    assert {p.gold for p in problems} == {QUESTION["SQL"]}


@pytest.mark.parametrize(
    "split, names, wanted",
    [
        ("dev", ["dev.json", "dev_20251106.json"], 4),
        ("train", ["train.json", "train_with_id.json"], 4),
        ("dev", ["dev.json", "dev_old.json", "mini_dev_sqlite.json"], 4),
        ("train", ["train_2.json", "train_with_id.json"], 4),  # the same numbers and questions
        ("dev", ["dev_20240627/dev.json", "dev_20251106/dev.json"], 4),
        ("train", ["train/train.json", "train/train_with_id.json"], 4),
    ],
)
def test_question_files_side_by_side_are_one_set(tmp_path, capsys, split, names, wanted):
    for folder in {(tmp_path / name).parent for name in names}:
        database(folder / f"{split}_databases")
    for name in names:
        write(tmp_path / name, many(4))
    problems = sql.read_problems(tmp_path, split)
    assert len(problems) == wanted == len({p.id for p in problems})
    if names[0] == "train_2.json":
        assert "record 0, 1, 2, 3 repeats a question" in capsys.readouterr().err


def test_of_side_by_side_files_one_can_be_named(tmp_path):
    database(tmp_path / "dev_databases")
    write(tmp_path / "dev.json", many(4))
    write(tmp_path / "dev_20251106.json", many(3))
    assert len(sql.read_problems(tmp_path / "dev_20251106.json", "dev")) == 3


@pytest.mark.parametrize(
    "name, content",
    [
        ("train_column_meaning.json", {"shop|orders|id": "the number of the order"}),
        ("train_prompts.json", ["You are a SQL expert."]),
        ("train_prompts.json", [{"question": "How many?", "prompt": "You are a SQL expert."}]),
        ("train_tables.json", [{"db_id": "shop", "table_names": []}]),
        ("train_schema.json", "{}"),
    ],
)
@pytest.mark.parametrize("questions", ["train.json", "train_spider.json"])
def test_other_files_beside_the_questions(tmp_path, name, content, questions):
    database(tmp_path / "database")
    write(tmp_path / questions, many(3))
    write(tmp_path / name, content)
    assert len(sql.read_problems(tmp_path, "train", strict=True)) == 3


NAN = float("nan")
BAD = {  # what is wrong with a record -> its changes
    "null question": {"question": None},
    "NaN question": {"question": NAN},
    "blank question": {"question": " \n"},
    "null query": {"SQL": None},
    "empty query": {"SQL": ""},
    "NaN query": {"SQL": NAN},
    "list of queries": {"SQL": ["SELECT 1"]},
    "null database": {"db_id": None},
    "no such database": {"db_id": "gone"},
    "glob for a database": {"db_id": "sh*"},
    "fails": {"SQL": "SELECT nope FROM orders"},
    "not SQL": {"SQL": "SELEC 1"},
    "no such function": {"SQL": "SELECT regexp_count(placed) FROM orders"},
    "another dialect": {"SQL": "SELECT `id` FROM orders FETCH FIRST 1 ROWS ONLY"},
    "writes": {"SQL": "DELETE FROM orders"},
    "two statements": {"SQL": "SELECT 1; SELECT 2"},
    "no row": {"SQL": "SELECT id FROM orders WHERE id < 0"},
    "no row either": {"SQL": "SELECT id FROM orders LIMIT 0"},
    "a comment": {"SQL": "-- SELECT 1"},
    "no Unicode": {"SQL": "SELECT '\ud800'"},
    "NUL": {"SQL": "SELECT 1 \0"},
    "too slow": {"SQL": "SELECT count(*) FROM orders a, orders b, orders c, orders d, orders e"},
    "too many rows": {"SQL": "SELECT 1 FROM orders a, orders b, orders c, orders d LIMIT 200001"},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_left_out_counted_and_named(tmp_path, capsys, kind):
    database(tmp_path / "dev_databases")
    records = many(5)
    records[3] |= BAD[kind]
    write(tmp_path / "dev.json", records)
    seconds = {"seconds": 0.2}
    problems = sql.read_problems(tmp_path, "dev", **seconds)
    assert [p.id for p in problems] == ["dev/0", "dev/1", "dev/2", "dev/4"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "record 3 " in said[0] and said[1].endswith("4 of 5 left")
    with pytest.raises(ValueError, match="record 3 ") as raised:
        sql.read_problems(tmp_path, "dev", strict=True, **seconds)
    assert "\n" not in str(raised.value)
    write(tmp_path / "dev.json", [records[3]])
    with pytest.raises(ValueError, match="record 0 ") as raised:
        sql.read_problems(tmp_path, "dev", **seconds)
    assert "\n" not in str(raised.value)


def test_each_gold_query_has_its_own_time(tmp_path):
    database(tmp_path / "dev_databases")
    slow = "SELECT count(*) FROM orders a, orders b, orders c, orders d"  # 810,000 rows
    write(tmp_path / "dev.json", many(4, SQL=slow))
    assert len(sql.read_problems(tmp_path, "dev", seconds=0.12)) == 4
    with pytest.raises(ValueError, match="record 0, 1, 2, 3 has a gold query that fails .timeout"):
        sql.read_problems(tmp_path, "dev", seconds=0.03)


@pytest.mark.parametrize(
    "records", [many(2), many(2, db_id=7), many(2, question_id=None), many(2, evidence=None)]
)
def test_odd_records_that_are_fine(tmp_path, capsys, records):
    for name in ("shop", "7"):
        database(tmp_path / "dev_databases", name)
    write(tmp_path / "dev.json", "\ufeff" + json.dumps(records))
    assert len(sql.read_problems(tmp_path, "dev", strict=True)) == 2 and not capsys.readouterr().err


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.mark.parametrize("content", ["", POINTER, "<html>404: Not Found</html>", None])
def test_a_database_that_is_none(tmp_path, capsys, content):
    database(tmp_path / "dev_databases", "good")
    place = tmp_path / "dev_databases" / "shop" / "shop.sqlite"
    if content is None:
        place.mkdir(parents=True)
    else:
        write(place, content)
    write(tmp_path / "dev.json", [*many(3), *many(2, db_id="good")])
    assert len(sql.read_problems(tmp_path, "dev")) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "record 0, 1, 2 needs" in said[0] and str(place) in said[0]
    write(tmp_path / "dev.json", many(3))
    with pytest.raises(ValueError, match="git lfs pull") as raised:
        sql.read_problems(tmp_path, "dev")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", POINTER, "[]", "{}", "3", "[null]", "[[]]"])
def test_a_question_file_without_questions(tmp_path, content):
    write(tmp_path / "dev.json", content)
    with pytest.raises(
        ValueError, match=r"is not JSON|no questions for dev|record 0 lacks"
    ) as raised:
        sql.read_problems(tmp_path, "dev")
    assert "\n" not in str(raised.value)


def test_what_the_gold_queries_gave_is_remembered(tmp_path, capsys):
    place = database(tmp_path / "dev_databases")
    records = many(3)
    records[1]["SQL"] = "SELECT nope FROM orders"
    write(tmp_path / "dev.json", records)

    def load():
        return [p.id for p in sql.read_problems(tmp_path, "dev", cache=tmp_path / "cache")]

    assert load() == load() == ["dev/0", "dev/2"]
    assert capsys.readouterr().err.count("no such column: nope") == 2
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("[null, null, null]")
    assert len(load()) == 3
    seconds = place.stat().st_mtime + 1  # another database, if of the same size: asked again
    os.utime(place, (seconds, seconds))
    assert load() == ["dev/0", "dev/2"]
