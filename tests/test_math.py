"""The mathematics task: extraction, equality of answers under rewriting, data layouts, prompts,
noise.
"""

import csv
import json
import random
import re
import sys
from fractions import Fraction

import pytest

from nanomerci.tasks import math
from nanomerci.tasks.graders.math_answers import TooLarge, same
from nanomerci.tasks.graders.pool import Pool


@pytest.fixture(scope="module")
def pool():
    with Pool(workers=2, deadline=20.0) as pool:
        yield pool


def box(text):
    return f"Therefore $\\boxed{{{text}}}$."


# ---- extraction


@pytest.mark.parametrize(
    "text, answer",
    [
        ("\\boxed{5}", "5"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1}\\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{5}}", "{5}"),
        ("\\fbox{5}", "5"),
        ("\\boxed {5}", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{5} and \\boxed{6", "5"),
        ("\\boxed{5", None),
        ("\\boxed{}", None),
        ("\\boxed 5", "5"),
        ("$\\boxed12$", "12"),
        ("\\boxed{5} or \\boxed{ }", "5"),
        ("\\boxed{1}, \\boxed{2} and $\\boxed{3}$", "1, 2, 3"),
        ("\\boxed{\\sqrt2}, so \\boxed{\\approx 1.41}", "\\sqrt2"),
        ("The answer is: **7**.", "7"),
        ("5", None),
        ("", None),
        ("Answer: 5", "5"),
        ("The answer is: $5$", "$5$"),
        ("**Answer:** 5", "5"),
        ("Answer: 4\nAnswer: 5\n", "5"),
        ("so\n#### 1,000", "1,000"),
        ("Answer: 4 but \\boxed{5}", "5"),
        ("\\boxed{5} Answer: 4", "5"),
        ("Answer:\n5", None),
        ("answers 5", None),
    ],
)
def test_answer(text, answer):
    assert math.answer(text) == answer


# ---- equality: an answer equals itself however it is written, and never a perturbed one


def spell(value, rng):
    """A way to write a rational number, exactly."""
    top, bottom = abs(value).numerator, abs(value).denominator
    sign = "-" if value < 0 else ""
    ways = [
        f"\\frac{{{top}}}{{{bottom}}}",
        f"{top}/{bottom}",
        f"\\dfrac{{{3 * top}}}{{{3 * bottom}}}",
        f"{top} / {bottom}",
        f"\\left(\\frac{{{top}}}{{{bottom}}}\\right)",
        f"\\text{{{top}/{bottom}}}",
    ]
    if bottom == 1:
        ways += [
            str(top),
            f"{top:,}",
            f"{top}.0",
            f"{top:,}".replace(",", "{,}"),
            f"+{top}" if not sign else str(top),
            f"{top}.",
            f"{top}\\text{{ cm}}",
            f"{top} \\mathrm{{~cm}}",
            f"{top} \\text{{ centimeters}}",
            f"{top}^\\circ",
            f"x = {top}",
        ]
        if "x =" in ways[-1] and sign:
            ways.pop()
    if bottom < 10 and top > bottom and bottom > 1:
        ways.append(f"{top // bottom}\\frac{{{top % bottom}}}{{{bottom}}}")
        ways.append(f"{top // bottom} {top % bottom}/{bottom}")
    decimal = Fraction(top * 10**6, bottom)
    if decimal.denominator == 1:
        text = f"{top // bottom}.{int(decimal) % 10**6:06}"
        ways += [
            text,
            text.rstrip("0"),
            f"{float(100 * abs(value)):.10g}\\%" if decimal % 100 == 0 else text,
        ]
    if top < 10 and bottom < 10:
        ways.append(f"\\frac{top}{bottom}")
    text = sign + rng.choice(ways)
    return rng.choice(
        ["{}", " {} ", "${}$", "\\({}\\)", "{}.", "\\displaystyle {}", "{{{}}}"]
    ).format(text)


def item(value, rng):
    """The same as one of several: no name, no comma, no full stop of its own."""
    return spell(Fraction(value), rng).replace(",", "").replace("x = ", "").strip(" .")


def cell(value, rng):
    """The same in a matrix: no unit."""
    texts = (item(value, rng) for _ in range(99))
    return next(text for text in texts if not re.search(r"circ|text|math|%|\$|display", text))


def numbers(seed):
    rng = random.Random(seed)
    value = Fraction(rng.randint(-4000, 4000), rng.choice([1, 1, 1, 2, 3, 4, 5, 7, 8, 20, 25, 100]))
    return value, rng


def test_numbers_equal_themselves_in_every_spelling():
    for seed in range(1500):
        value, rng = numbers(seed)
        a, b = spell(value, rng), spell(value, rng)
        assert same(a, b), (a, b)
        assert math.grade(a, box(b)).outcome == "right", (a, b)


def test_numbers_never_equal_a_perturbed_one():
    for seed in range(1500):
        value, rng = numbers(seed)
        other = rng.choice(
            [
                value + 1,
                value - 1,
                -value if value else 1,
                value * 10 or 1,
                value + Fraction(1, 1000),
                value * 2 or 1,
            ]
        )
        a, b = spell(value, rng).replace("%", ""), spell(Fraction(other), rng).replace("%", "")
        if "\\" not in a[-3:] + b[-3:]:  # a percentage also stands for its hundredth
            assert not same(a, b), (a, b)


def test_groups_equal_themselves_in_every_spelling_and_never_a_perturbed_one():
    for seed in range(600):
        rng = random.Random(seed)
        values = rng.sample(range(-30, 30), rng.randint(2, 4))

        def write(values, rng=rng):
            return rng.choice([", ", ",", " , "]).join(item(value, rng) for value in values)

        shuffled = rng.sample(values, len(values))
        changed = [*values[:-1], values[-1] + rng.choice([-100, 100])]
        for left, right, ordered in (
            ("(", ")", True),
            ("\\left(", "\\right)", True),
            ("\\{", "\\}", False),
            ("", "", False),
            ("[", ")", True),
            ("\\left\\{", "\\right\\}", False),
        ):
            gold = f"{left}{write(values)}{right}"
            assert same(gold, f"{left}{write(values)}{right}"), gold
            assert same(gold, f"{left}{write(shuffled)}{right}") is (
                not ordered or shuffled == values
            ), (gold, shuffled)
            assert not same(gold, f"{left}{write(changed)}{right}"), (gold, changed)
            assert not same(gold, f"{left}{write(values[:-1])}{right}"), gold

        def rows(v, rng=rng):
            return "\\begin{pmatrix}" + " \\\\ ".join(
                " & ".join(cell(x, rng) for x in v) for _ in (1, 2)
            )

        assert same(rows(values) + "\\end{pmatrix}", rows(values) + "\\end{pmatrix}")
        assert not same(rows(values) + "\\end{pmatrix}", rows(changed) + "\\end{pmatrix}")


EQUAL = [  # gold, answers
    ("(1,2]", ["(1, 2]", "\\left(1,2\\right]", "(1,2.0]", "x \\in (1,2]"]),
    (
        "1,2",
        [
            "2, 1",
            "\\{1,2\\}",
            "1 \\text{ and } 2",
            "x=1, x=2",
            "1 or 2",
            "x=2\\text{ or }x=1",
            "1;2",
        ],
    ),
    ("(-\\infty,1)\\cup(2,3]", ["(2,3]\\cup(-\\infty,1)", "(-∞, 1) ∪ (2, 3]"]),
    ("C", ["C", "(C)", "\\text{C}", "\\text{(C)}", "C. because", "\\mathrm{C}"]),
    ("\\text{Evelyn}", ["Evelyn", "\\text{evelyn}", "\\textbf{Evelyn}"]),
    ("3\\pm\\sqrt2", ["3+\\sqrt{2}, 3-\\sqrt 2"]),
    ("50\\%", ["50", "0.5", "\\frac12", "50 \\text{ percent}", "50%"]),
    ("1/3", ["0.333333", "0.\\overline{3}"]),
    ("5", ["x = 5", "5 \\text{ apples}", "\\$5", "5\\,\\text{cm}^2", "n=5", "5.000"]),
    ("x=5", ["5", "x = 5.0"]),
    ("10^{-3}", ["0.001", "1\\times10^{-3}", "1e-3"]),
    ("6.02\\times 10^{23}", ["6.02e23", "602\\cdot10^{21}"]),
    ("12345", ["12,345", "12{,}345", "12\\,345", "12,\\!345"]),
    ("−2", ["-2"]),
    ("p - q", ["p-q"]),
    ("\\text{(B)}", ["B", "(B)"]),
    ("\\emptyset", ["\\varnothing", "∅"]),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", ["\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}"]),
    ("[1,2]", ["[1, \\frac42]"]),
]
ALGEBRA = [
    ("\\sqrt{8}", ["2\\sqrt2", "2\\sqrt{2}", "8^{1/2}"]),
    ("x^2+2x+1", ["(x+1)^2", "1+x(x+2)"]),
    ("y=2x+3", ["y = 3 + 2x"]),
    ("2\\pi", ["\\pi\\cdot 2", "6.283185"]),
    ("\\frac{\\sqrt3}{3}", ["\\frac{1}{\\sqrt{3}}"]),
    ("(1,\\sqrt4)", ["(1,2)"]),
    ("120", ["5!"]),
    ("2^{x+1}", ["2\\cdot 2^x"]),
    ("\\log_2 8", ["3"]),
    ("2+3i", ["3i+2"]),
]
DIFFERENT = [
    ("(1,2]", ["(1,2)", "[1,2]", "(1,2", "1,2]"]),
    ("(1,2)", ["(2,1)", "\\{1,2\\}", "2,1", "(1,2,3)"]),
    ("1,2", ["1", "1,2,3", "12", "1,1"]),
    ("x=5", ["y=5", "x=6"]),
    ("1/3", ["0.33", "0.3333", "0.3334"]),
    ("5", ["5x", "55", "5 or 6", "5, 6", "5 million", "1/5", "\\pm5", "5 if true"]),
    ("C", ["D", "CD", "A, B, C", "C or D", "c is right"]),
    ("50\\%", ["5", "0.05", "500", "5000"]),
    ("\\text{even}", ["\\text{odd}", "even or odd"]),
    ("10^{-8}\\pi", ["10^{-9}\\pi"]),
    ("e^{-30}", ["0.000000001"]),
    ("\\sqrt2", ["1.41", "\\sqrt3", "-\\sqrt2"]),
    ("x^2", ["x^3", "y^2", "2x"]),
    ("n", ["m", "N"]),
    ("\\begin{pmatrix}1&2\\end{pmatrix}", ["\\begin{pmatrix}1\\\\2\\end{pmatrix}"]),
    ("1,234", ["1, 234"]),
    ("2ab", ["2", "2ac", "2 \\text{ab}"]),
    ("2", ["2ab", "2xyz", "2 xyz"]),
    ("2\\pi", ["6.28", "3\\pi"]),
]


@pytest.mark.parametrize(
    "table, outcome", [(EQUAL, "right"), (ALGEBRA, "right"), (DIFFERENT, "wrong")]
)
def test_tables(pool, table, outcome):
    pairs = [(gold, answer) for gold, answers in table for answer in answers]
    grades = pool.grade([(math.grade, gold, box(answer)) for gold, answer in pairs])
    assert [
        pair for pair, grade in zip(pairs, grades, strict=False) if grade.outcome != outcome
    ] == [], pool.last_error


def test_most_answers_never_reach_mpmath(monkeypatch):
    """The numbers, groups and words above are settled exactly: without the library they are still
    right.
    """
    monkeypatch.setitem(sys.modules, "mpmath", None)
    for gold, answers in EQUAL:
        for answer in answers:
            if "sqrt" not in gold:
                assert same(gold, answer), (gold, answer)


def test_tolerance():
    assert (
        not same("3.14159", "3.14160")
        and same("3.14159", "3.14160", tolerance=1e-4)
        and not same("3.14", "3.15", tolerance=1e-4)
    )


def test_the_budget():
    for text in (
        "9^{9^{9}}",
        "1000000!",
        "7" * 41 + "x",
        "(" * 13 + "x" + ")" * 13,
        "x" * 1001,
        ",".join("7" * 60),
    ):
        with pytest.raises(TooLarge):
            same("x+1", text)
    assert math.grade("7", box("9^{9^{9^{9}}}")).outcome == "unsafe"


def test_extraction_is_linear():
    """A square would take minutes here (the whole test has no clock; it would be noticed)."""
    for text in (
        "\\boxed{" * 100_000,
        "{" * 500_000,
        "Answer:" * 100_000,
        "```" * 100_000,
        "\\boxed{1}" * 100_000,
        "Answer: " + " " * 500_000,
        "\\boxed{1}" + " " * 500_000 + "\\boxed{2}",
        "\\boxed{1}, " * 100_000,
        "\\approx " * 100_000 + "\\boxed{1}",
    ):
        math.answer(text)
        math.noise(text)


# ---- noise


def test_noise():
    text = "We add. ```python\nprint(2)\n```\n```output\n2\n``` So $\\boxed{2}$. I hope this helps!"
    assert [text[a:b] for a, b in math.noise(text)] == [
        "```python\nprint(2)\n```",
        "```output\n2\n```",
        "I hope this helps!",
    ]
    assert math.noise("We add 1 and 1, hence \\boxed{2}.") == []
    assert [text[a:] for text in ("start ```python\nx",) for a, _ in math.noise(text)] == [
        "```python\nx"
    ]


def test_repetition_is_noise_the_second_time():
    sentence = "Let us compute the sum of the first ten odd numbers step by step now. "
    text = sentence + "Then we are done. " + sentence * 3
    spans = math.noise(text)
    assert min(start for start, _ in spans) >= len(sentence) + len("Then we are done. ") - 1
    marked = {i for start, end in spans for i in range(start, end)}
    assert len(marked) > 2.5 * len(sentence)
    assert math.noise("a" * 19) == [] and math.noise("so " + "!" * 30) == [(3, 33)]


# ---- data

DAPO = {
    "data_source": "math_dapo",
    "ability": "MATH",
    "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
    "prompt": [
        {
            "role": "user",
            "content": "Solve the following math problem step by step. The last line of your "
            "response should be "
            "of the form Answer: $Answer (without quotes) where $Answer is the answer to the "
            "problem.\n\n"
            "What is 30 + 4?\n\n"
            'Remember to put your answer on its own line after "Answer:".',
        }
    ],
}
LAYOUTS = {
    "dapo_math_17k": (DAPO, "What is 30 + 4?", "34"),
    "math": (
        {
            "problem": "P?",
            "level": "Level 5",
            "type": "Algebra",
            "solution": "Since $x$, $\\boxed{\\frac{1}{2}}$.",
        },
        "P?",
        "\\frac{1}{2}",
    ),
    "gsm8k": ({"question": "Q?", "answer": "She has <<2+2=4>>4.\n#### 4"}, "Q?", "4"),
    "aime24": (
        {"ID": "2024-I-1", "problem": "P?", "solution": "Long. \\boxed{1}", "answer": 204},
        "P?",
        "204",
    ),
    "math500": (
        {"problem": "P?", "solution": "\\boxed{1}", "answer": "\\left( 3, 2 \\right)"},
        "P?",
        "\\left( 3, 2 \\right)",
    ),
    "olympiadbench": (
        {"question": "P?", "solution": ["long"], "final_answer": ["$1$", "$-1$"]},
        "P?",
        "1, -1",
    ),
    "minerva": ({"question": "P?", "answer": "4.5e33"}, "P?", "4.5e33"),
    "college_math": ({"question": "P?", "answer": "$y=e^x$"}, "P?", "$y=e^x$"),
    "mmlu_pro": (
        {"question": "Q?", "options": ["one", "two", "three"], "answer": "B", "answer_index": 1},
        "Q?\nA. one\nB. two\nC. three",
        "B",
    ),
}


def write(path, records):
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    else:
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(records), path
        )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_layouts_by_name_from_a_local_folder(name, suffix, tmp_path):
    record, question, gold = LAYOUTS[name]
    write(tmp_path / f"{name}{suffix}", [record, record])
    (problem,) = math.read_problems(name, folder=tmp_path)  # the same question twice is one problem
    assert problem.gold == gold and problem.prompt in (
        question + math.BOXED,
        question + math.LETTER,
    )
    assert math.grade(gold, box(gold)).outcome == "right"


def test_gpqa_mixes_its_choices(tmp_path):
    records = [
        {
            "Question": f"Q{i}?",
            "Correct Answer": "right",
            "Incorrect Answer 1": "w1",
            "Incorrect Answer 2": "w2",
            "Incorrect Answer 3": "w3",
        }
        for i in range(40)
    ]
    write(tmp_path / "gpqa.jsonl", records)
    problems = math.read_problems("gpqa", folder=tmp_path)
    assert {problem.gold for problem in problems} == set("ABCD")
    assert all(f"{problem.gold}. right" in problem.prompt for problem in problems)
    assert problems == math.read_problems("gpqa", folder=tmp_path)


def test_the_papers_k():
    assert {name: source.k for name, source in math.SOURCES.items() if source.k > 1} == {
        "aime24": 256,
        "aime25": 256,
        "math500": 16,
        "olympiadbench": 16,
        "minerva": 16,
        "college_math": 8,
        "gpqa": 16,
    }


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_files_with_columns_by_name(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    if suffix == ".parquet":
        pytest.importorskip("datasets").config.HF_DATASETS_CACHE = tmp_path / "cache"
    write(
        tmp_path / f"mine{suffix}",
        [{"text": "What is 1 + 1?", "result": "2"}, {"text": "What is 1 + 2?", "result": "3"}],
    )
    problems = math.read_problems(str(tmp_path / f"mine{suffix}"), question="text", answer="result")
    assert [problem.gold for problem in problems] == ["2", "3"]
    assert (
        len(
            math.read_problems(
                str(tmp_path / f"mine{suffix}"), question="text", answer="result", limit=1
            )
        )
        == 1
    )


def test_a_folder_with_a_file_a_problem_and_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "MATH" / split / "algebra").mkdir(parents=True)
        for i in range(3):
            record = {"problem": f"{split} {i}?", "solution": f"\\boxed{{{i}}}"}
            (tmp_path / "MATH" / split / "algebra" / f"{i}.json").write_text(json.dumps(record))
    problems = math.read_problems(str(tmp_path / "MATH"), split="test")
    assert [problem.prompt.splitlines()[0] for problem in problems] == [
        "test 0?",
        "test 1?",
        "test 2?",
    ]


def test_what_a_user_gets_wrong_is_one_line(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "?", "result": "2"}])
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "none.jsonl").write_bytes(b"")
    (tmp_path / "lfs.jsonl").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
    )
    for arguments, says in [
        ((str(tmp_path / "a.jsonl"),), "no question in column .* it has text, result"),
        ((str(tmp_path / "gone.jsonl"),), "expected a .json"),
        ((str(tmp_path / "a.jsonl"), None, "txet"), "no question in column txet"),
        ((str(tmp_path / "bad.jsonl"),), "line 1: is not JSON"),
        (("math501",), "the name of a known set"),
        (("math500", tmp_path), "no math500 there"),
        ((str(tmp_path / "x.txt"),), "a .txt file"),
        ((str(tmp_path / "none.jsonl"),), "is empty"),
        ((str(tmp_path / "lfs.jsonl"),), "Git LFS pointer"),
    ]:
        with pytest.raises(ValueError, match=says) as error:
            math.read_problems(*arguments)
        assert "\n" not in str(error.value)


def test_text_files_as_they_come(tmp_path):
    """A byte-order mark; Unicode's line separators inside a text, which end no line of JSON."""
    odd = "first\u2028second\u2029third\u0085fourth"
    lines = "".join(
        json.dumps({"question": f"{odd} {i}?", "answer": i}, ensure_ascii=False) + "\r\n"
        for i in range(3)
    )
    for name, text in [
        ("a.jsonl", lines),
        ("b.json", json.dumps([{"question": odd, "answer": 1}], ensure_ascii=False)),
        ("c.csv", "question,answer\nWhy?,2\n"),
    ]:
        for mark in ("", "\ufeff"):
            (tmp_path / name).write_text(mark + text, encoding="utf-8")
            problems = math.read_problems(str(tmp_path / name), strict=True)
            assert len(problems) == (3 if name == "a.jsonl" else 1)
            assert (odd in problems[0].prompt) == (name != "c.csv")


@pytest.mark.parametrize(
    "answer, gold",
    [
        ({"ground_truth": '["34"]'}, "34"),
        ({"ground_truth": '["1", "$-1$"]'}, "1, -1"),
        ({"ground_truth": "[1, 2]"}, "[1, 2]"),
        ("So $x$ is $\\boxed 2$.", "2"),
        ("First \\boxed{}, then \\boxed{3}", "3"),
        (0, "0"),
        (0.5, "0.5"),
    ],
)
def test_golds_as_they_come(answer, gold, tmp_path):
    write(tmp_path / "a.jsonl", [{"id": None, "question": "?", "answer": answer}, {"id": 7}])
    (problem,) = math.read_problems(str(tmp_path / "a.jsonl"))
    assert problem.gold == gold


BAD = {
    "an empty question": {"question": " ", "answer": "2"},
    "no question": {"question": None, "answer": "2"},
    "NaN": {"question": "?", "answer": float("nan")},
    "an empty answer": {"question": "?", "answer": ""},
    "an empty box": {"question": "?", "answer": "\\boxed{}"},
    "a NaN question": {"question": float("nan"), "answer": "2"},
    "empty messages": {"prompt": [], "answer": "2"},
    "no record": 7,
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_record_is_counted_and_its_place_named(bad, tmp_path, capsys):
    good = [{"question": f"{i}?", "answer": str(i)} for i in range(3)]
    write(tmp_path / "a.jsonl", [*good, BAD[bad], BAD[bad]])
    assert [p.gold for p in math.read_problems(str(tmp_path / "a.jsonl"))] == ["0", "1", "2"]
    said = capsys.readouterr().err
    assert "2 bad records" in said and "record 3" in said and said.count("\n") == 1
    with pytest.raises(ValueError, match="record 3"):
        math.read_problems(str(tmp_path / "a.jsonl"), strict=True)


def test_a_line_that_is_not_json_is_counted_and_its_place_named(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"question": "?", "answer": 1}\n{"question": \n')
    assert len(math.read_problems(str(tmp_path / "a.jsonl"))) == 1
    assert "line 2: is not JSON" in capsys.readouterr().err


def test_what_the_system_says_is_kept(tmp_path):
    record = {
        "prompt": [
            {"role": "system", "content": "Answer in base 5."},
            {"role": "user", "content": "What is 3 + 4?"},
        ],
        "reward_model": {"ground_truth": "12"},
    }
    write(tmp_path / "a.jsonl", [record])
    (problem,) = math.read_problems(str(tmp_path / "a.jsonl"))
    assert problem.prompt == "Answer in base 5.\n\nWhat is 3 + 4?" + math.BOXED


def test_the_task():
    problem = math.Problem("1", "1 + 1?", "2")
    task = math.Math([problem], [problem])
    function, *arguments = task.job(problem, box("2"))
    assert (
        function(*arguments) == (1.0, "right")
        and task.answer(box("2")) == "2"
        and task.noise(problem, box("2")) == []
    )
