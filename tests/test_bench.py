"""The benchmarks: their work is what they say, and they print their tables."""

import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nanomerci.bench import __main__ as bench
from nanomerci.bench import gpu, graders, sampler, step
from nanomerci.runtime.config import UserError, parse
from nanomerci.tasks.graders.pool import Pool


def test_streams_are_graded_as_they_are_meant():
    rng = random.Random(1)
    with Pool(1, 10.0) as pool:
        easy = [grade.outcome for grade in pool.grade([graders.easy(rng) for _ in range(100)])]
        mixed = [grade.outcome for grade in pool.grade([graders.mixed(rng) for _ in range(100)])]
    assert (
        set(easy) == set(mixed) == {"right", "wrong"}
        and easy.count("right") > 60
        and mixed.count("right") > 60
    )
    jobs = [graders.hostile(rng) for _ in range(2000)]
    assert (
        60 < sum(job in graders.HOSTILE for job in jobs) < 140
    )  # one in twenty: 100, four deviations are 39


def test_no_hostile_answer_is_right():
    with Pool(1, 1.0) as pool:
        assert not any(grade.reward for grade in pool.grade(graders.HOSTILE))


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(graders, "HOSTILE", graders.HOSTILE[2:])  # those that are refused at once
    monkeypatch.setattr(graders, "BATCH", 64)
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench", "graders", "--seconds", "0.01", "--workers", "1", "--grade_timeout", "10"],
    )
    bench.main()
    text = capsys.readouterr().out
    assert (
        all(f"\n{name} " in text for name in ("easy", "mixed", "hostile"))
        and "equal: the pool" in text
    )


def test_the_sampler_table(monkeypatch, capsys):
    argv = ["bench", "sampler", "--rows=16", "--group=4", "--length=6", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    text = capsys.readouterr().out
    assert all(
        f"\n{name} " in text
        for name in ("nanomerci", "transformers generate", "transformers continuous_batching")
    )
    assert "does not run here" not in text and "equal: weights" in text
    assert "at least: arithmetic 0." in text and "ours: aten::" in text


def test_answers_of_the_sampler_bench_are_of_natural_lengths():
    model = sampler.build("tiny", torch.float32, torch.device("cpu"))
    prompts, ends = sampler.work(model, 256, 8, 48)
    assert len({len(p) for p in prompts}) > 4 and not set(ends) & {
        token for p in prompts for token in p
    }
    for peer in (sampler.ours, sampler.generate):
        lengths = peer(model, prompts, 8, 48, ends)
        # geometric with p = 5/128, cut at 48: mean 21.8, sd 16.5 (roughly, for random weights)
        assert len(lengths) == 256 and max(lengths) == 48 and 15 < sum(lengths) / 256 < 29


@pytest.mark.parametrize("option", ["--rows=0", "--rounds=-1", "--seconds=nan", "--compiled=maybe"])
def test_a_number_out_of_range_is_refused(monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["bench", "sampler", option])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2 and option.split("=")[0] in capsys.readouterr().err


@pytest.mark.slow  # it compiles
@pytest.mark.filterwarnings("default")  # of torch.compile
def test_compiled_generate_answers_at_natural_lengths():
    model = sampler.build("tiny", torch.float32, torch.device("cpu"))
    prompts, ends = sampler.work(model, 256, 8, 48)
    lengths = sampler.compiled_generate(model, prompts, 8, 48, ends)
    assert len(lengths) == 256 and max(lengths) == 48 and 15 < sum(lengths) / 256 < 29  # as above


def test_fast_paths_need_none_of_the_packages_for_tasks_and_commands():
    heavy = ("datasets", "sqlglot", "math_verify", "tyro", "trl")
    modules = (
        "nanomerci.sample, nanomerci.kernels.bench, nanomerci.kernels.logprob, "
        "nanomerci.kernels.cfn_score, nanomerci.loop.model, nanomerci.bench.__main__"
    )
    code = f"import sys\nfor name in {heavy}: sys.modules[name] = None\nimport {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_step_without_trl_is_one_line(monkeypatch):
    monkeypatch.setattr(step, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install -e"):
        step.run(None)


def test_the_step_table(monkeypatch, capsys):
    """Medians over the turns' steps; the processes themselves are left out."""
    phases = dict.fromkeys(step.PHASES, 0.25)
    monkeypatch.setattr(step, "find_spec", lambda name: name)
    monkeypatch.setattr(step, "our_step", lambda o, folder: ([0.5, 0.5, 9.0], [7.0], 100, phases))
    monkeypatch.setattr(step, "trl_step", lambda o, folder: ([1.0], [8.0], 200, None))
    monkeypatch.setattr(sys, "argv", ["bench", "step"])
    bench.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["nanomerci", "0.500", "7.0", "100", "1.00", "x"] in lines
    assert ["TRL", "GRPOTrainer", "1.000", "8.0", "200", "2.00", "x"] in lines
    assert ["of", "which", "sample", "0.250,"] in [words[:4] for words in lines]


def test_all_that_a_gpu_shows_goes_on_after_a_failure(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bench", "gpu"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            bench.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    commands = (
        ("one", None, "-c 'exit(3)'"),
        ("two", "nowhere", ""),
        ("three", "os", "-c 'print(7)'"),
    )
    monkeypatch.setattr(gpu, "COMMANDS", commands)
    with pytest.raises(SystemExit):
        bench.main()
    *_, one, two, three = capfd.readouterr().out.splitlines()
    assert one.split()[0] == "one" and one.endswith("failed with status 3")
    assert two.endswith("left out: nowhere is not installed") and three.endswith("done")


def test_every_command_for_a_gpu_is_one(monkeypatch):
    """As far as a machine without one can tell: modules and files exist, options are known."""
    for what, _, words in (*gpu.COMMANDS, ("sharded", None, gpu.SHARDED)):
        words = words.format(out="/tmp/x", gpus=2, p=8).split()
        if "train.py" in words:
            options = words[words.index("train.py") + 1 :]
            parse(options[2:] if options[0] == "--resume" else options)
        else:
            assert words[0] == "-m" and find_spec(words[1]), what
