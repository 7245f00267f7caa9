"""Every command the README shows: run as it stands, with options that make it small, or where it
needs weights or data, parsed.
"""

import dataclasses
import functools
import importlib
import re
import shlex
import sys

import pytest
from conftest import ROOT

from nanomerci import sample, tasks, train
from nanomerci.loop import warmstart
from nanomerci.runtime import config
from nanomerci.view import ask

README = (ROOT / "README.md").read_text()
SMALL = shlex.split(
    "--steps 2 --prompts 4 --group 4 --minibatches 2 --max_new_tokens 8 --eval_problems 4 "
    "--eval_k 2 --eval_every 0 "
    "--save_every 0 --cfn_pretrain 1 --threads 1 --graders 1 --report False"
)
LOADED, load_once = config.Config(), functools.cache(tasks.load)
AWAY = re.compile(
    r"smollm2|qwen|llama|DATA|DIR|MODEL"
)  # weights or data that are not here; tests of their own run them


def commands():
    """What stands in the README's fenced blocks, a command a line; what it is for follows after
    three spaces.
    """
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S):
        for line in block.splitlines() if language in ("", "bash") else ():
            for command in line.split("   ")[0].split(" && "):
                if re.match(r"(\S*/)?(python3?|torchrun|pip|source)\b", command.strip()):
                    yield command.strip()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder in which `python train.py` has been run."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, folder)
        train.main(config.parse(SMALL))
    return folder


def prepare(patch, folder):
    patch.chdir(folder)
    patch.setenv("NANOMERCI_CACHE", str(folder / "cache"))
    patch.setattr(warmstart, "STEPS", 2)  # a minute's schooling is not what is tested here
    patch.setattr(tasks, "load", lambda c: load_once(dataclasses.replace(LOADED, task=c.task)))


@pytest.mark.parametrize("command", dict.fromkeys(commands()))
def test_a_command_of_the_readme(command, workplace, monkeypatch, capsys):
    words = shlex.split(command)
    prepare(monkeypatch, workplace)
    program, *rest = words[words.index("train.py") :] if "torchrun" in words else words[1:]
    if program == "train.py":
        train_with(rest, command, workplace, monkeypatch, capsys)
    elif program == "sample.py" and AWAY.search(command):
        ask.arguments(rest)
    elif program == "sample.py":
        limits = ["--max_new_tokens", "8", *(["--limit", "3"] if "--eval" in rest else [])]
        monkeypatch.setattr(sys, "stdin", None)
        ask.main(ask.arguments([*rest, *limits]), sample.Sampler, sample.check)
        assert capsys.readouterr().out.strip()
        for name in (
            after for word, after in zip(rest, rest[1:], strict=False) if word == "--heatmap"
        ):
            assert (workplace / name).stat().st_size > 5000
    elif program.endswith(".py"):
        assert (ROOT / program).exists()  # tests/test_readme.py runs them alone
    elif program == "-m" and rest[0].startswith("nanomerci."):
        module = importlib.import_module(rest[0])
        monkeypatch.setattr(sys, "argv", [rest[0], *rest[1:], "--help"])
        with pytest.raises((SystemExit, config.UserError)) as stop:
            module.main()
        assert "usage" in capsys.readouterr().out + str(stop.value)
    else:
        check_installation(words)


def train_with(words, command, workplace, monkeypatch, capsys):
    small = [] if "--resume" in words else SMALL
    words = [
        "3" if before == "--steps" else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    if {"--help", "--list"} & {*words} or any(word.startswith("--tyro") for word in words):
        with pytest.raises(SystemExit) as stop:
            config.parse(words)
        assert not stop.value.code and len(capsys.readouterr().out) > 500
    elif (
        AWAY.search(command) or "torchrun" in command or not words
    ):  # tests/test_ranks.py; the workplace itself
        config.parse([word for word in words if word != "--dry_run"])
    else:
        if "--logger" in words:
            pytest.importorskip(
                words[words.index("--logger") + 1],
                reason="this logger is optional and not installed",
            )
        if not {"--out", "--resume"} & {*words}:
            small = [
                *small,
                "--out",
                f"runs/{len([*workplace.glob('runs/*')])}",
            ]  # not over a run that is there
        train.main(config.parse([*words, *small]))
        assert "held-out problems" in capsys.readouterr().out


def check_installation(words):
    """Extras that are named exist; what stands for Python itself is Python's."""
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        extra = re.fullmatch(r"\.\[(\w+)\]", word)
        assert not extra or extra[1] in known
    assert words[0].endswith("pip") or words[1:3] in (["-m", "venv"], ["-m", "pytest"]), words


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
    ):
        assert part in text
