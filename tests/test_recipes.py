"""The paper's four recipes: three real steps each on a random small model and data in its true
layout; their plans; toy_math.
"""

import json
import random
import sqlite3

import pytest
import torch

from nanomerci import tasks, train
from nanomerci.loop.model import tiny
from nanomerci.runtime import config
from nanomerci.runtime.config import Config, UserError, parse
from nanomerci.tasks import sql, toy_math
from nanomerci.tasks.graders.pool import Pool

MATH = [name for name in config.recipes() if "_math_" in name]
SQL = [name for name in config.recipes() if "llama3_sql_" in name]
WORDS = [
    "\\boxed{",
    "}",
    "```sql",
    "select",
    "name",
    "from",
    "owner",
    "pet",
    "age",
    "```",
    *"0123456789",
]
SMALL = {
    "steps": 3,
    "prompts": 2,
    "group": 4,
    "minibatches": 2,
    "max_prompt_tokens": 300,
    "max_new_tokens": 12,
    "overlong_buffer": 0,
    "cfn_hidden": 16,
    "cfn_pretrain": 1,
    "cfn_batch": 64,
    "cfn_replay": 256,
    "cfn_rehearse": 64,
    "eval_problems": 2,
    "eval_k": 2,
    "eval_every": 0,
    "save_every": 0,
    "graders": 1,
    "dtype": "float32",
    "max_seq_len": 2048,
    "warmup": 0,
    "lr": 1e-3,
    "device": "cpu",
    "threads": 1,
    "run": 1,
    "max_num_seqs": 8,
    "shard": "none",
    "grade_timeout": 20,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DAPO-Math-17k (chat messages, every question again), AIME, and BIRD and Spider folders as
    they are distributed.
    """
    root = tmp_path_factory.mktemp("data")
    wrap = (
        "Solve the following math problem step by step. The last line of your response should "
        "be of the form Answer: $Answer.\n\n"
        'What is {} + {}?\n\nRemember to put your answer on its own line after "Answer:".'
    )
    rows = [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": wrap.format(a, 2)}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(a + 2), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": str(a)},
        }
        for a in range(8)
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pytest.importorskip("pyarrow").Table.from_pylist(rows * 3), root / "dapo_math_17k.parquet"
    )
    exams = [
        {
            "id": i,
            "problem": f"What is {i} + 2?",
            "solution": "S",
            "answer": str(i + 2),
            "year": "2024",
        }
        for i in (5, 50, 60)
    ]
    (root / "aime24.jsonl").write_text("".join(json.dumps(one) + "\n" for one in exams))
    shop = (
        "CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);"
        "INSERT INTO owner VALUES (1, 'Ann', 30), (2, 'Bob', 41);"
    )
    for split, inside in (("train", "train"), ("dev", "dev_20240627")):
        folder = root / "bird" / inside / f"{split}_databases" / "shop"
        make(folder / "shop.sqlite", shop)
        (folder.parent.parent / f"{split}.json").write_text(
            json.dumps(
                [
                    {
                        "question_id": i,
                        "db_id": "shop",
                        "question": f"{split} question {i}?",
                        "evidence": "",
                        "SQL": "SELECT name FROM owner",
                    }
                    for i in range(4)
                ]
            )
        )
    make(root / "spider" / "database" / "shop" / "shop.sqlite", shop)
    for name in ("train_spider", "train_others", "dev"):
        (root / "spider" / f"{name}.json").write_text(
            json.dumps(
                [{"db_id": "shop", "question": f"{name}?", "query": "SELECT count(*) FROM owner"}]
            )
        )
    return root


def make(path, script):
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(WORDS, layers=1)


@pytest.mark.parametrize("name", MATH + SQL)
def test_three_real_steps(name, data, model, tmp_path, capsys):
    options = SMALL | {"model": model, "data_folder": data, "out": tmp_path / "run"}
    if "dapo" in name:
        options |= {
            "overlong_buffer": 4,
            "max_gen_rounds": 1,
        }  # a random model is never right: dynamic sampling would leave no group
    train.main(parse([name, *(f"--{key}={value}" for key, value in options.items())]))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(
        row["outcome/error"] == 0 and 0 < row["merci/kept"] < 1 and row["cfn/loss"] > 0
        for row in rows[1:]
    )
    assert rows[3]["eval/problems"] == 2
    samples = [
        json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()
    ]
    asked = {row["prompt"] for row in samples}
    assert len(asked) > 1
    if name in SQL:
        assert all(
            "CREATE TABLE owner" in prompt and "train question" in prompt for prompt in asked
        )
    else:
        assert all("\\boxed{}" in prompt and "Remember" not in prompt for prompt in asked)
        assert not any("What is 5 + 2?" in prompt for prompt in asked)  # it is in the test set
    assert (tmp_path / "run/checkpoints/step_000003/model/model.safetensors").exists()


@pytest.mark.parametrize("name", MATH + SQL)
def test_every_value_says_where_it_is_from(name):
    text = (config.RECIPES / f"{name}.yaml").read_text()
    for line in text.splitlines():
        if not line.startswith("#") and not line.startswith(("task:", "clip_high: 0.2 ")):
            assert any(mark in line for mark in ("[paper]", "[verl]", "[dph]", "[ours]")), line
    c = parse([name])
    assert (
        (c.algo == "dapo") == ("dapo" in name) == (c.clip_high == 0.28) == (c.overlong_buffer > 0)
    )
    assert (c.coins, c.top, c.gamma_decay, c.temperature, c.kl_coef, c.lr) == (
        20,
        0.3,
        200,
        1.0,
        0.0,
        1e-6,
    )
    given = set(config.read(config.RECIPES / f"{name}.yaml"))
    assert given >= {
        "steps",
        "prompts",
        "group",
        "minibatches",
        "max_new_tokens",
        "lr",
        "gamma",
        "alpha",
        "top",
        "run",
        "cfn_lr",
    }


@pytest.mark.parametrize("name", config.recipes())
def test_dry_run_of_every_recipe(name, data, model, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    generic = {"math": data / "aime24.jsonl", "sql": data / "spider"}
    for extra in ([], ["--data_folder", str(data)]) if name in MATH + SQL else ([],):
        if name in generic:  # they leave open what is trained
            extra = ["--model", str(model), "--train_data", str(generic[name])]
        train.main(parse([name, "--dry-run", *extra]))
        text = capsys.readouterr().out
        wanted = ("--- tokens", "KV cache", "logits tile", "peak", "--- seconds per step", "141 GB")
        assert all(word in text for word in wanted)
        if name in MATH + SQL:
            assert ("the data is out of reach" in text) == (not extra)
            assert f"no {'tokenizer' if extra else 'data'} within reach" in text
            size = float(text.split(" M parameters")[0].split()[-1].replace(",", ""))
            assert size == pytest.approx(
                7615.6 if name in MATH else 8030.3, abs=0.1
            )  # as their model cards say: 7.62 B, 8.03 B
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


def test_dry_run_counts_the_tokens_of_the_model_at_hand(data, model, capsys):
    options = {"model": model, "data_folder": data, "max_seq_len": 64, "dry_run": True}
    train.main(parse([MATH[0], *(f"--{name}={value}" for name, value in options.items())]))
    text = capsys.readouterr().out
    assert "--- 7 training problems, 3 held out" in text and "within reach" not in text
    assert "--- prompt, " in text and "TOO SHORT" in text
    assert text.endswith("80 GB: fits\n141 GB: fits\n")


def test_data_by_option(data, tmp_path):
    def load(**options):
        return tasks.load(Config(**options))

    spider_folder, mine_file = str(data / "spider"), tmp_path / "mine.csv"
    spider = load(task="sql", train_data=spider_folder, sql_match="spider", grade_timeout=20)
    assert (
        len(spider.train) == 2
        and len(spider.test) == 1
        and spider.options == ("spider", False, 0, 9.0)
    )
    folder = {"train_data": "bird", "test_data": "spider", "data_folder": str(data)}
    mixed = load(task="sql", perturbed_copies=2, **folder)
    assert len(mixed.train) == 4 and mixed.test == spider.test and mixed.options[2] == 2
    mine_file.write_text("text,result\n" + "".join(f"{i}?,{i}\n" for i in range(20)))
    mine = load(task="math", train_data=str(mine_file), columns="text, result")
    assert (
        len(mine.test) == 2 and len(mine.train) == 18 and mine.train[0].gold == "2"
    )  # a tenth is held back


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "math"}, "needs --train_data"),
        ({"task": "maths"}, "unknown; did you mean math?"),
        ({"task": "math", "train_data": "nowhere.jsonl"}, "--task math: nowhere.jsonl"),
        ({"task": "math", "train_data": "x", "columns": "a"}, "--columns a: expected two names"),
        ({"task": "sql", "train_data": "nowhere"}, "an unpacked Spider or BIRD folder"),
        ({"task": "reasoning_gym"}, "expected reasoning_gym:NAME"),
    ],
)
def test_bad_data_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        tasks.load(Config(**options))
    assert len(str(error.value).splitlines()) == 1


def test_prompts_that_are_too_long_are_left_out():
    task = tasks.load(Config(task="arithmetic"))

    def length(p):
        return len(p.prompt)

    short, longest = [p for p in task.train if length(p) <= 47], max(map(length, task.train))
    assert (
        tasks.fit(task, length, 0, 10) == (longest, 0) and longest > 47 and len(task.test) > 10
    )  # 0: all stay
    assert tasks.fit(task, length, 47, 10) == (47, 4000 - len(short) + 10 - len(task.test))
    assert task.train == short and all(length(p) <= 47 for p in task.test)
    with pytest.raises(UserError, match="--max_prompt_tokens 5: every train prompt is longer"):
        tasks.fit(task, length, 5, 10)


class TestToyMath:
    def test_carrying_is_always_right_and_columns_by_luck(self):
        task = toy_math.ToyMath()
        assert (
            len(task.train) == 4000
            and abs(sum(p.hard for p in task.test) / len(task.test) - 1 / 3) < 0.05
        )
        assert not {p.prompt for p in task.train} & {p.prompt for p in task.test}
        some = task.test[:60]
        answers = [
            toy_math.work(p.a, p.b, p.more, carry)[0] for p in some for carry in (True, False)
        ]
        with Pool(1) as pool:
            grades = pool.grade(
                [
                    task.job(p, text)
                    for p, text in zip((p for p in some for _ in (0, 1)), answers, strict=False)
                ]
            )
        assert [g.outcome for g in grades[::2]] == ["right"] * 60
        assert [g.outcome == "right" for g in grades[1::2]] == [not p.hard for p in some]
        assert [task.rare(p, text) for p, text in zip(some, answers[::2], strict=False)] == [
            p.hard for p in some
        ]
        assert not any(task.rare(p, text) for p, text in zip(some, answers[1::2], strict=False))
        assert not any(task.noise(None, text) for text in answers)

    def test_every_word_is_in_the_vocabulary_and_shares_are_as_said(self):
        task, rng = toy_math.ToyMath(), random.Random(0)
        _, tokenizer = tiny(task.words, width=16, layers=1, heads=2)
        shown = [task.demonstration(rng) for _ in range(4000)]
        for question, text in shown[:200]:
            for line in (question, text):
                assert tokenizer.decode(tokenizer(line)["input_ids"]) == line
            assert len(tokenizer(text)["input_ids"]) < parse(["toy_math"]).max_new_tokens
        assert (
            145 < sum("plan carry " in text for _, text in shown) < 255
        )  # one in twenty: 200, four deviations are 55


def test_pool_gives_both_queries_their_time():
    c = parse(["llama3_sql_grpo_cfn"])
    assert 15 <= c.query_seconds <= 16 and 2 * c.query_seconds < c.grade_timeout
    assert sql.SQL(seconds=c.query_seconds).options[3] == c.query_seconds
    assert torch.get_num_threads() == 1
