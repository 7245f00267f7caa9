"""The README cannot drift: equation index, glossary, file table and import rule against the
code.
"""

import ast
import doctest
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
SOURCES = [
    *ROOT.glob("*.py"),
    *(ROOT / "nanomerci").rglob("*.py"),
    *(ROOT / "kernels").rglob("*.py"),
]
TAG = re.compile(r"\[([A-Z][A-Za-z.]*:[a-z0-9-]+)\]")


def test_every_equation_tag_stands_once_in_code_and_once_in_the_index():
    in_code = [tag for path in SOURCES for tag in TAG.findall(path.read_text())]
    in_readme = TAG.findall(README)
    assert sorted(in_code) == sorted(in_readme) and len(set(in_code)) == len(in_code)


def test_the_index_names_the_function_that_carries_the_tag():
    for tag, where in re.findall(r"^\| `\[(\S+)\]` .*\| `(\w+\.\w+)` \|$", README, re.M):
        module, function = where.split(".")
        path = (
            ROOT / f"{module}.py"
            if (ROOT / f"{module}.py").exists()
            else ROOT / "nanomerci" / f"{module}.py"
        )
        assert re.search(rf"^def {function}\(.*# \[{re.escape(tag)}\]$", path.read_text(), re.M), (
            tag
        )


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("cfn.py", ("torch", "nanomerci.address")),
        ("grpo.py", ("torch",)),
        ("dapo.py", ("torch", "grpo")),
        ("nanomerci/merci.py", ("torch", "math")),
        ("nanomerci/address.py", ("torch", "zlib")),
        (
            "nanomerci/bonuses/rivals.py",
            ("torch", "cfn", "nanomerci.address", "hashlib", "collections"),
        ),
    ],
)
def test_maths_files_import_torch_only(name, allowed):
    for imported in imports(ROOT / name):
        assert any(imported == a or imported.startswith(f"{a}.") for a in allowed), imported


def test_import_rule():
    ours = {"train", "sample", "cfn", "grpo", "dapo", "kernels", "nanomerci"}
    for path in SOURCES:
        for imported in imports(path):
            assert imported.split(".")[0] != "train", f"{path} imports train"
            if path.parent.name == "kernels":
                assert imported.split(".")[0] not in ours - {"kernels"}, (
                    f"{path} imports {imported}"
                )
            if imported.startswith("torch.distributed"):
                assert path.name == "dist.py", f"{path} imports {imported}"


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_linked_functions_exist():
    """[`module.function`](file): the file has it."""
    found = re.findall(r"\[`(\w+)\.(?!py`)(\w+)`\]\(([^)]+\.py)\)", README)
    assert len(found) > 8
    for module, name, path in found:
        assert Path(path).stem == module and re.search(
            rf"^(def|class) {name}\b", (ROOT / path).read_text(), re.M
        ), name


def test_the_numbers_of_the_lesson():
    """The README's >>> lines give what stands below them."""
    lesson = doctest.DocTestParser().get_doctest(README.replace("```", ""), {}, "README", None, 0)
    assert len(lesson.examples) > 15
    said = []
    doctest.DocTestRunner().run(lesson, out=said.append)
    assert not said, "".join(said)


def test_troubleshooting_quotes_what_the_program_says():
    table = README.split("## When something goes wrong")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    code = re.sub(
        r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in SOURCES)
    )  # strings that go on in the next line
    assert len(quoted) > 8
    for words in quoted:
        assert words in code, words


def test_glossary_names_what_a_step_logs():
    files = (
        "train.py",
        *(f"nanomerci/{name}.py" for name in ("log", "evaluate", "explore", "oracle")),
    )
    source = "".join((ROOT / name).read_text() for name in files)
    for name in re.findall(r"`((?:reward|groups|clip|cfn|merci|sampler|oracle)/\w+)`", README):
        assert f'"{name}"' in source, name
    for name in re.findall(r'"((?:reward|groups|clip|cfn|merci|sampler|oracle)/\w+)"', source):
        assert f"`{name}`" in README, f"{name} is not explained in the README"


def test_top_level_is_what_it_should_be():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    top = {path.split("/")[0] for path in tracked}
    assert top <= {
        "nanomerci",
        "kernels",
        "tests",
        "train.py",
        "sample.py",
        "cfn.py",
        "grpo.py",
        "dapo.py",
        "README.md",
        "pyproject.toml",
        "LICENSE",
        ".gitignore",
        ".ci",
    }


@pytest.mark.parametrize(
    "file, lines",
    [
        ("cfn.py", ["1.0000", "0.0039"]),
        ("grpo.py", ["0.866", "loss -0.0592   by hand -0.0592"]),
        ("dapo.py", ["-0.25", "each token 1/5"]),
    ],
)
def test_concept_files_run_alone(file, lines):
    import sys

    done = subprocess.run([sys.executable, ROOT / file], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr
    assert all(line in done.stdout for line in lines)
