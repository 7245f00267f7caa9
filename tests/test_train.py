"""Whole runs of train.py on a task that takes milliseconds (tests/once.py): control, repetition,
resuming, cutting up.
"""

import json
import os
import shutil
import signal

import pytest
import torch
from conftest import ROOT
from once import WORDS
from runs import TIMES, metrics, same_weights, weights

from nanomerci import grpo, train
from nanomerci.objectives import OBJECTIVES, Objective
from nanomerci.runtime import checkpoint, config
from nanomerci.runtime.config import UserError


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run):
    one, two, other = run("one"), run("two"), run("other", seed=1)
    assert metrics(one) == metrics(two) and same_weights(weights(one, 4), weights(two, 4))
    assert metrics(one) != metrics(other)
    for name in ("samples.jsonl", "evals.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_same_seed_gives_the_same_run_on_two_threads(run, small_model):
    """Large enough for the threads to share work: a run of other sums would show."""
    wide = small_model(WORDS, width=256, layers=2, heads=4)
    options = {"model": wide, "threads": 2, "prompts": 32, "group": 16, "minibatches": 1}
    try:
        runs = [run(name, **options, steps=3, eval_every=0) for name in ("one", "two", "three")]
    finally:
        torch.set_num_threads(1)
    for other in runs[1:]:
        assert metrics(other) == metrics(runs[0])
        assert same_weights(weights(other, 3), weights(runs[0], 3))


def test_gamma_zero_is_plain_grpo_bit_for_bit(run):
    plain, control = run("plain", bonus="none"), run("control", gamma=0)
    policy, merci = run("policy", gamma=0, cfn_features="policy"), run("merci", gamma=1, alpha=0.9)
    own = (*TIMES, "merci/", "cfn/")
    for none in (control, policy):
        assert metrics(plain, own) == metrics(none, own)
        assert same_weights(weights(plain, 4), weights(none, 4))
    assert not same_weights(weights(plain, 4), weights(merci, 4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_attends_in_fp32(run, monkeypatch, dtype):
    """Wherever more than one token is forwarded: in the update, in what its ratio is taken to, and
    in the frozen copy.
    """
    computed, attention = set(), torch.nn.functional.scaled_dot_product_attention

    def watched(query, *more, **options):
        if query.shape[2] > 1:
            computed.add((query.dtype, torch.is_autocast_enabled("cpu")))
        return attention(query, *more, **options)

    monkeypatch.setattr(train, "check_model", lambda *_: None)  # in the dtype of the weights
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    first = run("one", dtype=dtype, steps=1, minibatches=2, old_logp="trainer", save_every=1)
    train.main(config.parse([f"--resume={first}", "--steps=2"]))
    assert computed == {(torch.float32, False)}


def test_an_objective_that_reads_outcomes_is_given_them(run, monkeypatch):
    """Equal numbers for equal final answers, whatever the bonus counts: here answers are graded by
    themselves, so equal answers have equal rewards, and there are several.
    """
    seen = []

    def advantage(reward_PG, outcome_PG):
        seen.append((reward_PG, outcome_PG))
        return grpo.advantage(reward_PG)

    monkeypatch.setitem(OBJECTIVES, "mine", Objective(advantage, reads_outcomes=True))
    run("mine", algo="mine", bonus="none")
    assert len(seen) == 4
    for reward_PG, outcome_PG in seen:
        assert outcome_PG.shape == reward_PG.shape and len(outcome_PG.unique()) > 1
        for outcome in outcome_PG.unique():
            assert len(reward_PG[outcome_PG == outcome].unique()) == 1


@pytest.mark.parametrize("algo", OBJECTIVES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(run, algo):
    whole = run("whole", steps=6, algo=algo)
    first = run("first", steps=2, algo=algo)
    resumed = run("resumed", resume=first, steps=6)
    assert metrics(resumed) == metrics(whole)
    assert same_weights(weights(resumed, 6), weights(whole, 6))
    for name in ("state.pt", "rank_00000.pt"):
        a, b = (
            leaves(torch.load(f / "checkpoints/step_000006" / name, weights_only=True))
            for f in (resumed, whole)
        )
        assert a.keys() == b.keys() and a
        for path, x in a.items():
            assert torch.equal(x, b[path]) if isinstance(x, torch.Tensor) else x == b[path], path


def leaves(x, path=""):
    """Nested dicts and lists -> {path: leaf}."""
    if not isinstance(x, dict | list | tuple):
        return {path: x}
    found = {}
    for key, value in x.items() if isinstance(x, dict) else enumerate(x):
        found |= leaves(value, f"{path}/{key}")
    return found


def test_damaged_lines_are_dropped_and_no_others(tmp_path):
    damaged = ['{"step": 1, "x', "", "null", "[1]", '{"x": 1}', '{"step": null}', "[" * 10**5]
    whole = ['{"step": 0}', '{"step": 2}', '{"step": 3}']
    path = tmp_path / "metrics.jsonl"
    lines = "\n".join([whole[0], *damaged, whole[1], whole[2]])
    path.write_bytes(lines.encode() + b"\n\xff\xfe\x00")
    checkpoint.truncate(path, 2)
    assert path.read_text().splitlines() == whole[:2]


def test_lines_written_after_the_checkpoint_are_cut_on_resume(run):
    whole = run("whole", steps=4)
    killed = run("killed", steps=4)
    shutil.rmtree(killed / "checkpoints/step_000004")
    (killed / "checkpoints/.step_000004.partial").mkdir()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "half a li')
    assert metrics(run("x", resume=killed, steps=4)) == metrics(whole)


@pytest.mark.parametrize("algo, kl", [("grpo", 0.0), ("dapo", 0.0), ("grpo", 0.1)])
def test_micro_batches_do_not_change_the_result(run, algo, kl):
    one = run("one", algo=algo, kl_coef=kl, micro_batch_tokens=10**6)
    many = run("many", algo=algo, kl_coef=kl, micro_batch_tokens=30)
    a, b = weights(one, 4), weights(many, 4)
    # of 2.4e-2 that AdamW can move; it amplifies rounding near 0
    assert max((a[k] - b[k]).abs().max() for k in a) < 1e-4
    for x, y in zip(metrics(one), metrics(many), strict=True):
        name = "reward/mean" if x["step"] else "eval/mean@4"
        assert x[name] == y[name]
        assert x.get("grad_norm", 0) == pytest.approx(y.get("grad_norm", 0), rel=1e-4)


def test_equal_responses_are_learned_from_once(run, monkeypatch):
    """No two rows of a forward are alike, and every row gets what it alone would."""
    rows_seen, current = [], train.LogProbs.current

    def watched(self, policy, once_u, row_b, place_b):
        here, *ours = current(self, policy, once_u, row_b, place_b)
        theirs = self.forward(policy, self.rollout.rows(row_b))
        for our_bT, their_bT in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our_bT, their_bT, rtol=1e-4, atol=1e-5)
        once = self.rollout.rows(once_u)
        texts = torch.cat([once.tokens_BT, once.mask_BT.long()], 1).tolist()
        assert len(set(map(tuple, texts))) == len(texts)
        rows_seen.append((len(once_u), len(row_b)))
        return here, *ours

    monkeypatch.setattr(train.LogProbs, "current", watched)
    run("one", minibatches=1, temperature=0.5, group=16, steps=2)
    computed, learned = map(sum, zip(*rows_seen, strict=True))
    assert 0 < computed < learned


def test_it_learns(run):
    size = {"prompts": 8, "group": 8, "eval_problems": 8, "eval_k": 16}
    before, *_, after = metrics(run("long", steps=40, eval_every=0, save_every=0, **size))
    assert after["eval/mean@16"] - before["eval/mean@16"] > 0.2


def test_sampler_and_trainer_agree(run):
    for row in metrics(run("gap", minibatches=1))[1:]:
        assert row["sampler/logp_gap"] < 1e-5 and row["clip/high"] == row["clip/low"] == 0
    reused = metrics(run("reused", minibatches=2, old_logp="sampler"))
    gaps = [row["sampler/logp_gap"] for row in reused[1:]]
    assert 0 < max(gaps) < 1e-5  # measured, not assumed


def test_checkpoints_are_hugging_face_folders(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_folder = run("hf")
    folder = run_folder / "checkpoints/step_000004/model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("a b c")["input_ids"]) == "a b c"
    embedding = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings()
    assert torch.equal(embedding.weight, weights(run_folder, 4)["model.embed_tokens.weight"])


def test_a_non_finite_gradient_stops_before_the_update(run, monkeypatch, tmp_path):
    calls = []
    original = train.token_logp

    def poisoned(*arguments):
        logp, entropy = original(*arguments)
        calls.append(1)
        return (logp * (torch.nan if len(calls) > 5 else 1.0)), entropy

    monkeypatch.setattr(train, "token_logp", poisoned)
    message = r"step \d+: the gradient's norm is nan; it was not applied"
    with pytest.raises(UserError, match=message):
        run("nan", save_every=1)
    newest = sorted((tmp_path / "nan/checkpoints").glob("step_*"))[-1]
    saved = weights(tmp_path / "nan", int(newest.name[5:]))
    assert all(torch.isfinite(w).all() for w in saved.values())


def test_a_folder_that_holds_a_run_is_not_overwritten(run):
    folder = run("held")
    before = metrics(folder)
    with pytest.raises(UserError, match="already holds a run; continue with --resume"):
        run("held")
    assert metrics(folder) == before
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="holds a run without a checkpoint"):
        run("held")
    assert metrics(folder) == before


def test_old_checkpoints_go_but_the_first_stays(run):
    folder = run("keep", steps=6, save_every=1, keep_checkpoints=2)
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["step_000000", "step_000005", "step_000006"]


# written by this test when the file is absent: delete it to accept a change of the numbers
GOLDEN = ROOT / "tests" / "golden.json"
WATCHED = (
    "reward/mean",
    "grad_norm",
    "entropy",
    "kl",
    "cfn/loss",
    "cfn/invn",
    "merci/bonus",
    "merci/share",
)


def test_golden_run(run):
    """Twenty steps against stored numbers: whoever changes the training by accident hears of it
    here.
    """
    rows = metrics(run("golden", steps=20, eval_every=0, save_every=0, minibatches=1, kl_coef=0.01))
    got = [{name: row[name] for name in WATCHED} for row in rows[1:]]
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(got, indent=0))
    for step, (mine, stored) in enumerate(zip(got, json.loads(GOLDEN.read_text()), strict=True), 1):
        for name in WATCHED:
            assert mine[name] == pytest.approx(stored[name], rel=2e-3, abs=1e-5), (step, name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    number, run, capsys, monkeypatch, tmp_path
):
    steps = []
    original = train.update

    def update(*arguments):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train, "update", update)
        folder = run("stopped", steps=6)
    said = f"stopped after step 3; to resume: python train.py --resume {folder}"
    assert said in capsys.readouterr().err
    assert metrics(run("x", resume=folder, steps=6)) == metrics(run("whole", steps=6))
