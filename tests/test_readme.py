"""README and docs cannot drift: size, links, equations, metrics, messages, recorded numbers, and
one word for one thing on everything a user reads.
"""

import ast
import doctest
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml
from conftest import ROOT
from test_house import sources

from nanomerci.bench import __main__ as bench
from nanomerci.lab import compare, counters, figures, stats
from nanomerci.runtime import config
from nanomerci.view import ask

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "kernels/README.md"]
TAG = re.compile(r"\[([A-Z][A-Za-z.]*:[a-z0-9-]+)\]")
RECORDS = ROOT / "nanomerci/lab/experiments"


def page(name):
    return (ROOT / "docs" / name).read_text()


def rows(text):
    """Cells of all tables, without emphasis and code marks."""
    for line in re.findall(r"^\|(.*)\|$", text, re.M):
        cells = re.split(r"(?<!\\)\|", line)
        yield [cell.strip().replace("**", "").replace("`", "") for cell in cells]


# ---- the README as a whole
def test_size_and_order():
    assert len(README.splitlines()) <= 220 and len(README.encode()) <= 18_000
    assert re.findall(r"^## (.*)$", README, re.M) == [
        "Status",
        "Quick start",
        "MERCI in five steps",
        "One training step",
        "The code, in reading order",
        "Results",
        "Your own",
        "Documentation",
        "Citation, credit, licence",
    ]


def test_the_two_commands_are_on_one_line_each():
    for mark, last in (("run", "train.py"), ("test", "pytest -q")):
        (command,) = re.findall(rf"^<!-- {mark} -->\n```\n(.*)\n```$", README, re.M)
        assert command.endswith(last)
    words = (ROOT / ".ci/run").read_text()
    assert "<!-- test -->" in words and "ruff" in words


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#]+)", README))
    for path in PAGES[1:]:
        name = path.relative_to(ROOT).as_posix()
        inside = name.removeprefix("docs/")
        assert name in linked or any(f"({inside})" in p.read_text() for p in PAGES), name


def test_line_counts_of_the_map():
    """Within a tenth; a folder counts all its Python files."""
    table = README.split("## The code, in reading order")[1].split("\n## ")[0]
    for places, lines, _ in list(rows(table))[2:]:
        counted = 0
        for place in re.findall(r"\]\(([^)]+)\)", places):
            path = ROOT / place
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                counted += len(file.read_text().splitlines())
        assert abs(int(lines) - counted) <= 0.1 * counted, (places, counted)


def anchor(title):
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.stem)
def test_links_resolve(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        place, _, section = link.partition("#")
        target = (path.parent / place) if place else path
        assert target.exists(), link
        if section:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            assert section in map(anchor, titles), link


# ---- equations
def test_every_equation_tag_stands_once_in_code_and_once_in_the_index():
    in_code = [tag for path in sources() for tag in TAG.findall(path.read_text())]
    table = page("equations.md").split("# MERCI by example")[0]
    in_index = re.findall(r"^\| `\[(\S+)\]`", table, re.M)
    assert sorted(in_code) == sorted(in_index) and len(set(in_code)) == len(in_code)


def test_the_index_names_the_function_that_carries_the_tag():
    found = [cells for cells in rows(page("equations.md")) if TAG.fullmatch(cells[0])]
    assert len(found) > 20
    for tag, *_, where in found:
        file, function = where.split(": ")
        tree = ast.parse((ROOT / file).read_text())
        (line,) = (
            n for n, text in enumerate((ROOT / file).read_text().splitlines(), 1) if tag in text
        )
        (holder,) = (
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.lineno <= line <= node.end_lineno
        )
        assert holder == function, tag


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs/equations.md"])
def test_the_examples_give_what_stands_below_them(path):
    text = path.read_text().replace("```", "")
    example = doctest.DocTestParser().get_doctest(text, {}, path.name, None, 0)
    assert len(example.examples) >= 10
    said = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize(
    "file, lines",
    [
        ("cfn.py", ["1.0000", "0.0039"]),
        ("grpo.py", ["0.866", "loss -0.0592   by hand -0.0592"]),
        ("dapo.py", ["-0.25", "each token 1/5"]),
    ],
)
def test_concept_files_run_alone(file, lines):
    done = subprocess.run([sys.executable, ROOT / file], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    assert all(line in done.stdout for line in lines)


# ---- metrics and messages
def test_the_glossary_is_what_runs_log(run):
    names = [cells[0] for cells in rows(page("metrics.md"))][2:]
    explained = {name for cell in names for name in cell.split(", ")}
    folder = run("all", algo="dapo", oracle_counts=True, kl_coef=0.1, cfn_features="frozen")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    logged = {name.removesuffix("_ci") for line in lines for name in line}
    logged = {re.sub(r"(mean@)\d+", r"\1K", re.sub(r"(pass@)\d+", r"\1k", n)) for n in logged}
    only_sometimes = {"speed/mfu", "speed/bandwidth", "oracle/spearman", "oracle/slope"}
    assert logged - only_sometimes == explained - only_sometimes
    code = "".join(path.read_text() for path in sources())
    assert all(f'"{name}"' in code for name in only_sometimes & explained)
    assert only_sometimes <= explained


def strings(node):
    """The literal text of an expression, with {} for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(strings(v) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return " ".join(filter(None, map(strings, ast.iter_child_nodes(node))))


@functools.cache
def messages():
    """Where -> what errors and lines to the user say."""
    said = {}
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name.endswith("Error") or name in ("log0", "announce", "print", "warn"):
                    said[f"{file.name}:{node.lineno}"] = strings(node)
    return said


def test_troubleshooting_quotes_what_the_program_says():
    code = "".join(path.read_text() for path in sources())
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings that go on in the next line
    quoted = [cells[0] for cells in rows(page("troubleshooting.md"))][2:]
    assert len(quoted) > 12
    for words in quoted:
        assert words in code, words


# ---- numbers that were recorded
@functools.cache
def recorded(name):
    """What nanomerci.lab.stats makes of a recorded experiment: arm -> its line; and all of it."""
    text = stats.show(RECORDS / f"{name}.csv")
    lines = {}
    for cells in rows(text.split("After equal seconds")[0]):
        lines.setdefault(cells[0], " | ".join(cells))
    return lines, text


ARMS = {
    "before RL": "before",
    "GRPO": "grpo",
    "GRPO + CFN (MERCI)": "grpo+cfn",
    "GRPO + random bonus (control)": "grpo+random",
    "MaxRL": "maxrl",
    "MaxRL + CFN": "maxrl+cfn",
    "pass@k training": "passk",
}


def check_row(head, cells, line):
    """mean@8 and pass@8 are those of the line; so are the columns that give means alone."""
    values = line.split(" | ")
    for cell in cells[1:3]:
        assert cell in values, (cells, line)
    alone = {"hard questions": values[7], "rare idiom": values[6], "seconds": values[-1]}
    for name, cell in zip(head, cells, strict=True):
        if name in alone and cell:
            rounding = 0.051 if name == "seconds" else 0.00051
            assert abs(float(cell) - float(alone[name])) <= rounding, (cells, line)


def test_the_readmes_table_is_the_recorded_one():
    lines, _ = recorded("benchmark")
    table = README.split("## Results")[1].split("\n## ")[0]
    head, *_ = rows(table)
    found = [cells for cells in rows(table) if cells[0] in ARMS]
    assert len(found) == len(ARMS)
    for cells in found:
        check_row(head, cells, lines[ARMS[cells[0]]])
    said = recorded("benchmark")[1] + recorded("benchmark_seconds")[1]
    for number in re.findall(r"[+]?\b0\.\d{3}\b", README.split("## Status")[0]):
        assert f" {number} " in said, number


@pytest.mark.parametrize(
    "title, name, count",
    [
        ("## The benchmark", "benchmark", 20),
        ("### At equal seconds", "benchmark_seconds", 6),
        ("### Ablations", "benchmark_ablations", 6),
        ("## `toy_sql`", "toy_sql", 11),
        ("### Follow-up", "toy_sql_later", 4),
        ("## SmolLM2", "smollm2_arithmetic", 5),
    ],
)
def test_the_tables_of_the_results_are_the_recorded_ones(title, name, count):
    lines, text = recorded(name)
    part = page("results.md").split(title)[1].split("\n#")[0]
    table = part.split("| paired difference")[0]
    head, *_ = rows(table)
    found = [cells for cells in rows(table) if "[" in "".join(cells[1:3])]
    assert len(found) == count
    for cells in found:
        arm = cells[0].split(",")[0].split(" (")[0].replace("before RL", "before")
        check_row(head, cells, lines[arm if arm in lines else arm.replace("features", "trunk")])
    signed = r"[+−-]\d\.\d{3} \[[+−-]\d\.\d{3}, [+−-]\d\.\d{3}\]"
    said = text.replace(" | [", " [").replace("−", "-")
    for number in re.findall(signed, part):
        assert number.replace("−", "-") in said, number


def test_no_line_is_drawn_from_the_first_evaluation_to_the_last():
    assert "equal seconds" not in recorded("benchmark")[1].lower()


TESTED = ["benchmark", "benchmark_seconds", "toy_sql", "benchmark_chatty", "benchmark_ablations"]


@pytest.mark.parametrize("name", TESTED)
def test_p_values_are_the_recorded_ones(name):
    table = 1 + TESTED.index(name)
    part = page("results.md").split("| paired difference")[table].split("\n\n")[0]
    part = re.sub("−(?=0)", "-", part)
    _, text = recorded(name)
    head, _, *found = rows("| paired difference" + part)
    for cells in found:
        for at, metric in enumerate(head):
            if metric not in ("mean@8", "pass@8", "hard questions"):
                continue
            metric = metric.replace(" questions", "")
            name = cells[0].replace("−", "-")
            line = rf"\| {re.escape(name)} \| {metric} \| (.*?) \| (.*?) \| \S+ \| (\S+) \|"
            mean, interval, p = re.search(line, text).groups()
            assert cells[at : at + 2] == [f"{mean} {interval}", p]


def test_the_counters_are_the_recorded_ones():
    def numbers(text):
        found = []
        for cells in rows(text):
            if re.match(r"\d+", cells[0]):
                found.append([re.sub(r"(?<!\d)\.", "0.", cell) for cell in cells[2:]])
        return found

    ours, theirs = (
        numbers(text) for text in (page("counter.md"), (RECORDS / "counters.md").read_text())
    )
    assert len(ours) == 13 and ours == theirs


# ---- one word for one thing
OLD_WORDS = {
    r"wages?": "exploration bonus",
    r"school(ed|ing)?": "SFT warm start",
    r"(silent|dead) groups?": "groups with zero reward variance",
    r"trunks?": "feature model",
    r"rivals?": "baselines",
    r"(ladder|rung)s?": "counters",
    r"bur(y|ied|ying)": "discard",
    r"look(s|ed|ing)? at": "score, inspect, see",
    r"oracle": "exact counts",
    r"wanted": "expected",
    r"new ground": "novel",
    r"rehears(e|es|ed|ing)": "replayed",
    r"zygote": "fork server",
    r"for ever": "(leave out)",
    r"sampled answers?|\d[\d,]* (samples|answers)|samples? \d+": "responses",
    r"(all|were|was|are|is) (right|wrong)|(right|wrong) answers?": "correct, incorrect",
    (
        r"(responses?|samples?|answers?|bonus|coins?|tokens?|steps?|runs?|seeds?|rows?|objects?|"
        r"groups?|visits?|seconds|lines?|columns?|hash|number|time) an? (response|prompt|step|"
        r"second|run|visit|coin|group|rank|problem|question|arm|state|core|row|seed|slot)"
    ): "per",
}


def old_words(text):
    """Old words outside code, links, options and metric names -> [(word, the field's)]."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|--\w+|\w+/[\w*]+|[a-z]+_\w+|\*[^*\n]+\*", " ", text)
    return [
        (found[0], term)
        for old, term in OLD_WORDS.items()
        for found in re.finditer(rf"(?<![-\w])({old})(?![-\w])", text, re.I)
    ]


def test_the_search_for_old_words_finds_them():
    found = {old for old, _ in old_words("A wage of 8 samples a prompt; look at it, wanted: 3")}
    assert found == {"wage", "samples a prompt", "8 samples", "look at", "wanted"}
    assert not old_words("`--oracle_counts`, oracle/slope, --cfn_rehearse 8 responses per prompt")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.stem)
def test_pages_use_the_fields_words(path):
    assert old_words(path.read_text()) == []


HELPS = {
    "train": lambda: config.parse(["--help"]),
    "list": lambda: config.parse(["--list"]),
    "sample": lambda: ask.arguments(["--help"]),
    "compare": lambda: compare.arguments(["--help"]),
    "bench": bench.main,
    "stats": lambda: tyro.cli(stats.main, args=["--help"]),
    "counters": lambda: tyro.cli(counters.main, args=["--help"]),
    "figures": lambda: tyro.cli(figures.main, args=["--help"]),
}


@pytest.mark.parametrize("name", HELPS)
def test_help_uses_the_fields_words(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        HELPS[name]()
    assert not stop.value.code
    said = capsys.readouterr().out
    assert len(said) > 200 and old_words(re.sub(r"[│─]|\s+", " ", said)) == []


def test_recipes_use_the_fields_words():
    for path in config.RECIPES.glob("*.yaml"):
        assert old_words("\n".join(re.findall("#.*", path.read_text()))) == [], path.name


def test_messages_use_the_fields_words():
    found = {where: old_words(text) for where, text in messages().items()}
    assert len(found) > 150
    assert {where: words for where, words in found.items() if words} == {}


# ---- what else is expected of such a repository
def test_citation_and_workflow():
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "title", "message", "authors", "license"} <= cite.keys()
    assert "2510.16614" in cite["references"][0]["url"] and "2510.16614" in README
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "://" not in text


def test_top_level_is_what_it_should_be():
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {Path(line).parts[0] for line in tracked.splitlines()}
    code = "nanomerci kernels tests train.py sample.py cfn.py grpo.py dapo.py"
    around = "README.md docs pyproject.toml LICENSE CHANGELOG.md CITATION.cff"
    hidden = ".gitignore .git-blame-ignore-revs .ci .github"
    assert top <= {*code.split(), *around.split(), *hidden.split()}
