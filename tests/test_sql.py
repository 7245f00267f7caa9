"""The SQL task: comparisons as Spider and BIRD define them, the executor, the anti-luck copies,
folders, prompts, noise.
"""

import json
import random
import sqlite3

import pytest

from nanomerci.tasks import sql
from nanomerci.tasks.graders.pool import Pool
from nanomerci.tasks.graders.sqlite import Rejected, Result, Script

SHOP = Script("""
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, age INTEGER, town TEXT);
CREATE TABLE pet (
    id INTEGER PRIMARY KEY, owner INTEGER REFERENCES owner (id), kind TEXT, weight REAL);
INSERT INTO owner VALUES
    (1,'Ann',30,'Oslo'), (2,'Bob',30,NULL), (3,'Cem',25,'Bonn'), (4,'Dan',61,'Oslo'),
    (5,'Eve',19,'Lyon'), (6,'Fay',44,'Bonn'), (7,'Gus',52,'Oslo'), (8,'Hal',33,'Lyon'),
    (9,'Ivy',28,NULL), (10,'Jon',47,'Bonn');
INSERT INTO pet VALUES
    (1,1,'cat',3.1), (2,1,'dog',9.5), (3,2,'cat',4.0), (4,3,'dog',NULL), (5,4,'cat',2.2),
    (6,6,'cat',5.1), (7,7,'dog',8.8), (8,8,'dog',7.7), (9,10,'cat',3.3), (10,10,'eel',0.4);""")


def result(*rows):
    return Result(len(rows[0]) if rows else 1, list(rows))


def fence(query):
    return f"I think.\n```sql\n{query}\n```"


def outcome(gold, query, match="spider", **options):
    return sql.grade(SHOP, gold, fence(query), match, **options).outcome


# ---- comparisons


@pytest.mark.parametrize(
    "gold, got, bird, spider, spider_ordered",
    [
        (result((1,), (2,)), result((2,), (1,)), True, True, False),  # row order
        (result((1,), (1,), (2,)), result((1,), (2,)), True, False, False),  # duplicates
        (result((1, "a"), (2, "b")), result(("a", 1), ("b", 2)), False, True, True),  # column order
        (
            result((1, 2), (2, 1)),
            result((2, 1), (1, 2)),
            True,
            True,
            True,
        ),  # ordered: by swapping the columns
        # the columns agree, the rows do not
        (result((1, 1), (2, 3)), result((1, 3), (2, 1)), False, False, False),
        (result((None,)), result((None,)), True, True, True),
        (result((None,)), result((0,)), False, False, False),
        (result((None,)), result(("",)), False, False, False),
        (result(("1",)), result((1,)), False, False, False),
        (result((1,)), result((1.0,)), True, True, True),
        (result((0.1 + 0.2, "x")), result((0.3, "x")), True, True, True),
        (result((0.3,)), result((0.30001,)), False, False, False),
        (result((10**9,)), result((10**9 + 1,)), False, False, False),  # integers are exact
        (
            result((0.1 + 0.2, "a"), (0.3, "b")),
            result((0.3, "a"), (0.1 + 0.2, "b")),
            True,
            True,
            True,
        ),
        (result(), result(), True, True, True),
        (result((1,)), result(), False, False, False),
        (result((1, 2)), result((1,)), False, False, False),
        (result((1,)), result((1, 1)), False, False, False),
    ],
)
def test_what_counts_as_the_same(gold, got, bird, spider, spider_ordered):
    assert sql.same_set(gold, got) is bird
    assert sql.same_result(gold, got) is spider
    assert sql.same_result(gold, got, ordered=True) is spider_ordered


def test_columns_are_matched_fast_when_many_are_alike():
    rows = [tuple(i % 2 for _ in range(60)) for i in range(50)]
    other = [(*row[:-1], 1 - row[-1]) for row in rows]
    assert sql.same_result(result(*rows), result(*rows))
    assert not sql.same_result(result(*rows), result(*other))  # 60! assignments, were they tried


def test_any_shuffle_is_the_same_and_any_change_is_not():
    for seed in range(200):
        rng = random.Random(seed)
        width = rng.randint(1, 4)

        def cell(rng=rng):
            return rng.choice(
                [None, "a", "b", rng.randint(0, 3), rng.random(), 0.1 * rng.randint(0, 9)]
            )

        rows = [tuple(cell() for _ in range(width)) for _ in range(rng.randint(1, 8))]
        columns = rng.sample(range(width), width)

        def noisy(x):
            return x * (1 + 1e-13) if isinstance(x, float) else x

        shuffled = [tuple(noisy(row[k]) for k in columns) for row in rng.sample(rows, len(rows))]
        assert sql.same_result(result(*rows), result(*shuffled)), seed
        assert sql.same_set(
            result(*rows),
            result(*[tuple(map(noisy, row)) for row in rng.sample(rows, len(rows)) + rows[:2]]),
        )
        i, k = rng.randrange(len(rows)), rng.randrange(width)
        changed = [
            row if j != i else (*row[:k], "changed", *row[k + 1 :]) for j, row in enumerate(rows)
        ]
        assert not sql.same_result(result(*rows), result(*changed)), seed
        assert not sql.same_set(result(*rows), result(*changed)), seed


def test_order_counts_exactly_when_the_gold_query_has_an_outer_order_by():
    ordered = "SELECT name FROM owner ORDER BY age DESC, name"
    assert outcome(ordered, "SELECT name FROM owner ORDER BY 1") == "wrong"
    assert outcome(ordered, "SELECT name FROM owner ORDER BY 1", match="bird") == "right"
    inner = "SELECT name FROM owner WHERE id IN (SELECT owner FROM pet ORDER BY weight LIMIT 3)"
    assert outcome(inner, inner + " ORDER BY name DESC") == "right"
    assert sql.is_ordered("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1")
    assert not sql.is_ordered("SELECT a, rank() OVER (ORDER BY b) FROM t")


@pytest.mark.parametrize(
    "query",
    [
        "select O.name from owner as O where O.age > 40",
        "SELECT name FROM owner WHERE NOT age <= 40;",
        "SELECT `name` FROM [owner] WHERE age > 4e1",
        "WITH old AS (SELECT * FROM owner WHERE age > 40) SELECT name FROM old",
        "SELECT name AS who FROM owner WHERE age > 40 -- all of them",
        "SELECT a.name FROM owner a JOIN owner b ON a.id = b.id WHERE b.age > 40",
        "SELECT name FROM (SELECT name, age FROM owner) WHERE 40 < age",
        "SELECT name FROM owner WHERE age > 40 ORDER BY age DESC",
        "SELECT name FROM owner WHERE id IN (SELECT id FROM owner WHERE age > 40)",
        "SELECT name FROM owner WHERE age > 50 UNION ALL SELECT name FROM owner WHERE age "
        "BETWEEN 41 AND 50",
        "SELECT (name) FROM main.owner WHERE age>40",
        "WITH RECURSIVE n(x) AS (SELECT 41 UNION ALL SELECT x + 1 FROM n WHERE x < 99) SELECT "
        "name FROM owner JOIN n ON age = x",
        "SELECT name FROM owner GROUP BY id HAVING max(age) > 40",
        "SELECT iif(1, name, '') FROM owner WHERE CAST(age AS REAL) > 40",
    ],
)
@pytest.mark.parametrize("match", ["spider", "bird"])
def test_rewritings_of_a_query_are_right_also_on_perturbed_copies(query, match):
    assert outcome("SELECT name FROM owner WHERE age > 40", query, match, copies=5) == "right"


# ---- grading


@pytest.mark.parametrize(
    "query, outcome_",
    [
        ("SELECT nope FROM owner", "wrong"),
        ("SELECT name FROM", "unparsable"),
        ("", "unparsable"),
        ("DROP TABLE owner", "unsafe"),
        ("SELECT 1; SELECT 2", "unsafe"),
        ("SELECT sql FROM sqlite_master", "unsafe"),
        ("SELECT random()", "unsafe"),
        ("SELECT count(*) FROM pet a, pet b, pet c, pet d, pet e, pet f, pet g, pet h", "timeout"),
        ("SELECT hex(printf('%.16000000c', 'x')) || a.id FROM pet a, pet b", "wrong"),
    ],
)
def test_typed_outcomes(query, outcome_):
    assert outcome("SELECT name FROM owner", query, seconds=0.2) == outcome_


def test_answer_is_the_last_sql_fence():
    assert sql.answer("```sql\nSELECT 1\n``` then ```SQL\nSELECT 2\n```") == "SELECT 2"
    assert sql.answer("```python\nSELECT 1\n```") is None
    assert sql.answer("```sql\nSELECT 1") is None and sql.answer("SELECT 1") is None


def test_a_gold_query_that_fails_is_an_error_that_shows():
    with Pool(workers=1) as pool:
        assert (
            pool.grade([(sql.grade, SHOP, "SELECT nope FROM owner", fence("SELECT 1"))])[0].outcome
            == "error"
        )
        assert "gold query fails" in pool.last_error and "nope" in pool.last_error


def test_a_gold_query_may_use_any_function():
    assert sql.grade(SHOP, "SELECT abs(random()) >= 0", fence("SELECT 1")).outcome == "right"


def test_partial_credit():
    gold = "SELECT name, age, town FROM owner"

    def credit(query):
        return sql.grade(SHOP, gold, fence(query), partial=True).reward

    assert credit("SELECT name, age, town FROM owner") == 1
    assert credit("SELECT name FROM owner") == pytest.approx(0.8 * 1 / 3)
    assert credit("SELECT town, name FROM owner") == pytest.approx(0.8 * 4 / 6)
    assert credit("SELECT age, name, town FROM owner") == pytest.approx(
        0.8
    )  # BIRD wants the columns in order
    assert credit("SELECT 1") == credit("SELECT nope FROM owner") == 0
    twice = sql.grade(
        SHOP, "SELECT age, age, age FROM owner", fence("SELECT age FROM owner"), partial=True
    )
    assert twice.reward == pytest.approx(0.8 / 3) and twice.outcome == "wrong"


@pytest.mark.parametrize(
    "gold, lucky",
    [
        ("SELECT count(*) FROM owner", "SELECT 10"),
        ("SELECT name FROM owner WHERE age > 60", "SELECT 'Dan'"),
        (
            "SELECT name FROM owner WHERE age > 60",
            "SELECT name FROM owner WHERE id = 4 OR age > 70 AND id > 4",
        ),
        ("SELECT count(*) FROM pet WHERE kind = 'cat'", "SELECT count(*) / 2 FROM pet"),
        ("SELECT max(weight) FROM pet", "SELECT 9.5"),
        ("SELECT count(DISTINCT town) FROM owner", "SELECT count(*) - 7 FROM owner"),
    ],
)
def test_lucky_queries_are_right_once_and_found_out_on_perturbed_copies(gold, lucky):
    assert outcome(gold, lucky) == "right"
    if "id = 4" not in lucky:  # that one is lucky only in what it means
        assert outcome(gold, lucky, copies=8) == "wrong"
    assert outcome(gold, gold, copies=8) == "right"


def test_perturbed_copies_keep_foreign_keys_and_are_a_function_of_the_seed():
    orphans = "SELECT count(*) FROM pet WHERE owner NOT IN (SELECT id FROM owner)"
    pets = [sql.run(SHOP, "SELECT id FROM pet", seed=seed).rows for seed in range(8)]
    assert all(sql.run(SHOP, orphans, seed=seed).rows == [(0,)] for seed in range(8))
    assert len({tuple(rows) for rows in pets}) > 4 and all(len(rows) < 10 for rows in pets)
    fresh = sql.run.__globals__["Database"](SHOP, 3).run("SELECT id FROM pet", 1.0, True)
    assert fresh.rows == pets[3]


def test_a_database_file_is_neither_changed_nor_accompanied(tmp_path):
    path = tmp_path / "it's a 100% shop?.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SHOP)
    connection.close()
    before = path.read_bytes()
    assert (
        sql.grade(
            str(path), "SELECT name FROM owner", fence("SELECT name FROM owner"), copies=2
        ).outcome
        == "right"
    )
    with pytest.raises(Rejected):
        sql.run(str(path), "DELETE FROM owner")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_results_are_remembered_but_bounded():
    from nanomerci.tasks.graders import sqlite

    results = sqlite._Results()
    for i in range(1000):
        results.keep(i, Result(1, [(1,)] * 2000))
    assert results.rows <= 500_000 and len(results) < 260 and 999 in results


def test_text_that_is_not_utf8(tmp_path):
    with sqlite3.connect(tmp_path / "x.sqlite") as connection:
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
    connection.close()
    assert sql.run(str(tmp_path / "x.sqlite"), "SELECT x FROM t").rows == [("a\ufffdb",)]
    assert "a\ufffdb" in sql.schema(str(tmp_path / "x.sqlite"), 1000)


# ---- folders and prompts


def make(folder, database_folder):
    (folder / database_folder / "shop").mkdir(parents=True)
    with sqlite3.connect(folder / database_folder / "shop" / "shop.sqlite") as connection:
        connection.executescript(SHOP)
    connection.close()


@pytest.fixture
def spider(tmp_path):
    make(tmp_path, "database")
    record = {
        "db_id": "shop",
        "question": "How many owners?",
        "query": "SELECT count(*) FROM owner",
        "sql": {},
        "query_toks": [],
    }
    for name in ("train_spider", "train_others", "dev"):
        (tmp_path / f"{name}.json").write_text(json.dumps([record]))
    (tmp_path / "tables.json").write_text("[]")
    (tmp_path / "train_gold.sql").write_text("")
    return tmp_path


@pytest.fixture
def bird(tmp_path):
    for split, inside in (("train", "train"), ("dev", "dev_20240627")):
        make(tmp_path / inside, f"{split}_databases")
        record = {
            "question_id": 0,
            "db_id": "shop",
            "question": "Oldest?",
            "evidence": "oldest means max(age)",
            "SQL": "SELECT name FROM owner ORDER BY age DESC LIMIT 1",
            "difficulty": "simple",
        }
        (tmp_path / inside / f"{split}.json").write_text(json.dumps([record]))
        (tmp_path / inside / f"{split}_tables.json").write_text("[]")
    return tmp_path


def test_spider_folder(spider):
    assert [problem.id for problem in sql.read_problems(spider)] == [
        "train_others/0",
        "train_spider/0",
    ]
    (problem,) = sql.read_problems(spider, "dev")
    task = sql.SQL(test=[problem], match="spider")
    function, *arguments = task.job(problem, fence("SELECT count(id) FROM owner"))
    assert function(*arguments).outcome == "right"
    assert "Question: How many owners?" in problem.prompt and "CREATE TABLE owner" in problem.prompt


def test_bird_folder(bird):
    for split in ("train", "dev"):
        (problem,) = sql.read_problems(bird, split)
        assert "Evidence: oldest means max(age)" in problem.prompt
        assert (
            sql.grade(
                problem.database, problem.gold, fence("SELECT name FROM owner WHERE age = 61")
            ).outcome
            == "right"
        )
    assert len(sql.read_problems(bird / "train", "train")) == 1  # also when given the inner folder


def test_schema_shows_keys_and_examples_within_its_budget():
    full = sql.schema(SHOP, 12_000)
    assert (
        "-- name, e.g. 'Ann', 'Bob', 'Cem'" in full
        and "owner INTEGER REFERENCES owner (id)" in full
    )
    connection = sqlite3.connect(":memory:")
    connection.executescript(full)  # it is SQL
    connection.close()
    tight = sql.schema(SHOP, len(full) - 1)
    assert len(tight) < len(full) and "'Ann', 'Bob'" in tight and "'Cem'" not in tight
    assert "e.g." not in sql.schema(SHOP, 10) and "weight REAL" in sql.schema(SHOP, 10)


def test_what_a_user_gets_wrong_is_one_line(tmp_path, spider):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected an unpacked Spider or BIRD folder"):
        sql.read_problems(tmp_path / "empty")
    (spider / "dev.json").write_text('[{"question": "?", "query": "SELECT 1", "db_id": "gone"}]')
    with pytest.raises(ValueError, match="no such database"):
        sql.read_problems(spider, "dev")
    (spider / "dev.json").write_text('[{"question": "?"}]')
    with pytest.raises(ValueError, match="record 0 lacks"):
        sql.read_problems(spider, "dev")
    (spider / "dev.json").write_text("not JSON")
    with pytest.raises(ValueError, match="is not JSON"):
        sql.read_problems(spider, "dev")
    with pytest.raises(ValueError, match="expected one of bird, spider"):
        sql.SQL(match="birds")


# ---- noise


def test_noise():
    text = (
        "Count them. ```python\nlen(x)\n``` so\n"
        "```sql\nSELECT 1 -- one\n/* two */ + 2\n``` Hope this helps!"
    )
    marked = [text[start:end] for start, end in sql.noise(text)]
    assert marked == ["```python\nlen(x)\n```", "-- one", "/* two */", " Hope this helps!"]
    assert sql.noise("plan ```sql select 1 ```") == []
