"""Every command that README and docs show: run as it stands, with options that make it small, or
where it needs weights or data, parsed.
"""

import functools
import importlib
import re
import runpy
import shlex
import sys
import tomllib

import pytest
from conftest import ROOT

from nanomerci import sample, tasks, train
from nanomerci.loop import warmstart
from nanomerci.runtime import config
from nanomerci.view import ask

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = shlex.split(
    "--steps 2 --prompts 4 --group 4 --minibatches 2 --max_new_tokens 8 --eval_problems 4 "
    "--eval_k 2 --eval_every 0 "
    "--save_every 0 --cfn_pretrain 1 --threads 1 --graders 1 --report False"
)
AWAY = re.compile(r"smollm2|[qQ]wen|llama|DATA|MODEL|SmolLM2")  # weights or data that are not here
OWN = re.compile(
    r"(?<![\w/])(?!train|sample)\w+\.py\b"
)  # files of docs/your-own.md: its test runs them
MAKE = tasks.make
VALUES = {"--logger": "none", "--steps": "3"}
ELSEWHERE = {"docs/lesson.py": "test_lesson.py"}


def commands():
    """What stands in fenced blocks, a command per line; what it is for follows after three spaces.
    A line that ends in a backslash goes on in the next.
    """
    for path in PAGES:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S):
            for line in block.splitlines() if language == "" else ():
                for command in line.split("   ")[0].split(" && "):
                    if re.match(r"(\S*/)?(python3?|torchrun|pip|marimo)\b", command.strip()):
                        yield command.strip()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which `python train.py` has been run."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, folder)
        train.main(config.parse(SMALL))
    return folder


@functools.cache
def toy_sql():
    return MAKE(config.Config(task="toy_sql"))


def prepare(patch, folder):
    patch.chdir(folder)
    patch.setenv("NANOMERCI_CACHE", str(folder / "cache"))
    patch.setattr(warmstart, "STEPS", 2)  # the warm start is not what is tested here
    patch.setattr(tasks, "make", lambda c: toy_sql() if c.task == "toy_sql" else MAKE(c))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of run_module
@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_a_command(command, workplace, monkeypatch, capsys):
    words = shlex.split(command)
    prepare(monkeypatch, workplace)
    program, *rest = words[words.index("train.py") :] if "torchrun" in words else words[1:]
    if words[0].endswith(("pip", "marimo")) or program == "-m" and rest[0] in ("venv", "pytest"):
        check_installation(words)
    elif program in ELSEWHERE:
        assert (ROOT / "tests" / ELSEWHERE[program]).exists()
    elif program == "train.py":
        train_with(rest, command, workplace, monkeypatch, capsys)
    elif program == "sample.py":
        sample_with(rest, command, workplace, monkeypatch, capsys)
    else:
        assert program == "-m"
        run_module(*rest, monkeypatch=monkeypatch, capsys=capsys)


def sample_with(words, command, workplace, monkeypatch, capsys):
    if AWAY.search(command):
        return ask.arguments(words)
    limits = ["--max_new_tokens", "8", *(["--limit", "3"] if "--eval" in words else [])]
    monkeypatch.setattr(sys, "stdin", None)
    ask.main(ask.arguments([*words, *limits]), sample.Sampler, sample.check_model)
    assert capsys.readouterr().out.strip()
    for word, after in zip(words, words[1:], strict=False):
        assert word != "--heatmap" or (workplace / after).stat().st_size > 5000


def run_module(name, *words, monkeypatch, capsys):
    """Its --help is printed; a comparison is parsed, arms and all."""
    module = importlib.import_module(name)
    if name == "nanomerci.lab.compare":
        a, rest = module.arguments(list(words))
        assert all(map(module.options, a.arms.split(","))) and rest
        return
    monkeypatch.setattr(sys, "argv", [name, *words, "--help"])
    with pytest.raises(SystemExit):
        runpy.run_module(name, run_name="__main__")
    said = capsys.readouterr()
    assert "usage" in said.out + said.err


def train_with(words, command, workplace, monkeypatch, capsys):
    before = ["", *words]
    words = [VALUES.get(b, word) for b, word in zip(before, words, strict=False)]
    if {"--help", "--list"} & {*words} or any(word.startswith("--tyro") for word in words):
        with pytest.raises(SystemExit) as stop:
            config.parse(words)
        assert not stop.value.code and len(capsys.readouterr().out) > 500
    elif AWAY.search(command) or OWN.search(command) or "torchrun" in command or not words:
        config.parse([word for word in words if word != "--dry_run"])
    else:
        small = [] if "--resume" in words else SMALL
        if not {"--out", "--resume"} & {*words}:  # not over a run that is there
            small = [*small, "--out", f"runs/{len([*workplace.glob('runs/*')])}"]
        train.main(config.parse([*words, *small]))
        assert "held-out problems" in capsys.readouterr().out


def check_installation(words):
    """Extras that are named exist; what stands for Python itself is Python's."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        extra = re.fullmatch(r"\.\[(\w+)\]", word)
        assert not extra or extra[1] in known
    if words[0] == "marimo":
        assert words[1] in ("run", "edit") and (ROOT / words[2]).exists()


def test_there_are_commands_of_every_kind():
    text = "\n".join(commands())
    for part in (
        "train.py",
        "train.py --resume",
        "sample.py runs/",
        "--eval",
        "--dry_run",
        "torchrun",
        "-m nanomerci.",
        "pip install",
        "--reward",
        "--bonus first_use.py",
    ):
        assert part in text
