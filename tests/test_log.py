"""What a run writes while it goes on: samples with the novelty of their tokens, a live report that
costs little, loggers.
"""

import json
from itertools import pairwise

import pytest
import torch
from once import Problem

from nanomerci.loop import metrics
from nanomerci.loop.model import tiny
from nanomerci.loop.rollout import Batch, Rollout, pad
from nanomerci.runtime import config
from nanomerci.runtime.log import LOGGERS, Log
from nanomerci.tasks.graders.pool import Grade
from nanomerci.view import report
from nanomerci.view.report import LiveReport


@pytest.mark.parametrize("cost, apart", [(0.1, 10), (0.3, 15), (2.0, 100)])
def test_the_live_report_takes_no_more_than_its_share(tmp_path, monkeypatch, cost, apart):
    """A clock of our own: a second per step, and `cost` per report."""
    now, written = [0.0], []
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])

    def slow(folder, pictures):
        written.append(now[0])
        now[0] += cost

    monkeypatch.setattr(report, "report", slow)
    log = Log(tmp_path, config.Config(), -1, [LiveReport(tmp_path)])
    for step in range(1000):
        now[0] += 1.0
        log.step({"step": step})
    gaps = [b - a for a, b in pairwise(written)]
    assert written[0] == 1.0 and apart <= min(gaps) and max(gaps) <= apart + cost + 1.1
    assert len(written) * cost <= 0.021 * now[0] + cost


def test_a_report_is_there_after_the_first_step(tmp_path):
    log = Log(tmp_path / "run", config.Config(), -1, [LiveReport(tmp_path / "run")])
    log.step({"step": 0, "entropy": 1.0})
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    assert not list((tmp_path / "run").glob("*.png"))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny(["so", "a", "b", "c", "d"])[1]


def batch(tokenizer, novelty=1.0):
    """Two groups of two responses, with the novelties 0, 1, 2 ... from the first column on."""
    texts = ["so a", "b c d", "c", "d d"]
    rows = [tokenizer(f"a a {text}")["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    tokens_BT = pad(rows)
    column_T = torch.arange(tokens_BT.shape[1])
    length_B1 = torch.tensor([len(row) for row in rows])[:, None]
    mask_BT = ((column_T >= 2) & (column_T < length_B1)).float()
    passed_T = torch.tensor([0, 0, 1, 3, 2, 0])
    return Batch(
        number_P=torch.tensor([0, 1]),
        problem_P=[Problem("p0", "a a"), Problem("p1", "a a")],
        rollout=Rollout(tokens_BT, mask_BT, mask_BT),
        novelty_BT=column_T * mask_BT * novelty,
        passed_BT=passed_T[column_T] * mask_BT.long(),
        logp_ref_BT=mask_BT * 0,
        reward_PG=torch.tensor([[1.0, 0], [1, 0]]),
        bonus_PG=torch.tensor([[0.1, 0.2], [0.3, 0.4]]),
        grade_B=[Grade(1.0, "right"), Grade(0.0, "wrong")] * 2,
        text_B=texts,
        answer_B=[None] * 4,
    )


def sample_record(tokenizer, **options):
    """As it comes out of samples.jsonl."""
    adv_B = torch.tensor([1.0, -1.0, 5.0, 5.0])
    record = metrics.sample_record(7, batch(tokenizer, **options), adv_B, tokenizer)
    return json.loads(json.dumps(record))


def test_a_sample_keeps_its_tokens_their_novelty_and_what_the_filters_kept(tokenizer, monkeypatch):
    record = sample_record(tokenizer)
    assert (record["step"], record["id"], record["answers"]) == (7, "p0", ["so a", "b c d"])
    assert record["advantage"] == [1, -1]
    assert record["tokens"] == [["so", " a", " <eos>"], ["b", " c", " d", " <eos>"]]
    assert record["invn"] == [[2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]]
    assert record["kept"] == ["-x-", "-x--"] and record["cut"] == [0, 0]
    assert "tokens" not in sample_record(tokenizer, novelty=0.0)  # without a bonus
    monkeypatch.setattr(metrics, "COLOURED", 3)
    record = sample_record(tokenizer)
    assert record["tokens"][1] == ["b", " c", " d"]
    assert record["kept"] == ["-x-", "-x-"] and record["cut"] == [0, 1]


def test_the_metrics_count_what_each_filter_left(tokenizer):
    both = batch(tokenizer)
    counts = metrics.step_metrics(both, both, torch.zeros(2, 2), torch.zeros(4))
    names = ("kept_top", "kept_run", "kept")
    assert [counts[f"merci/{name}"] for name in names] == [(11, 12), (7, 12), (4, 12)]


METRICS = [
    {"step": n, "reward/mean": n / 4, "eval/mean@8": 0.5, "eval/mean@8_ci": [0.4, 0.6]}
    for n in range(4)
]


def test_tensorboard_shows_every_number_once_even_after_a_kill(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional and not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # killed after step 2, its newest checkpoint is of step 1
    for done, rows in ((-1, METRICS[:3]), (1, METRICS[2:])):
        log = Log(tmp_path, config.Config(logger="tensorboard"), done)
        for m in rows:
            log.step(m)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"reward/mean", "eval/mean@8"}
    points = [(e.step, e.value) for e in board.Scalars("reward/mean")]
    assert points == [(n, n / 4) for n in range(4)]


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is optional and not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = Log(tmp_path, config.Config(logger="wandb", gamma=0.25), -1)
    for m in METRICS:
        log.step(m)
    assert wandb.run.summary["reward/mean"] == 0.75 and wandb.run.config["gamma"] == 0.25
    assert wandb.run.id == (tmp_path / "wandb_id").read_text()
    wandb.finish()
    wandb.teardown()  # its server is a process of its own


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_that_is_not_installed_is_refused_before_any_work(name, monkeypatch):
    monkeypatch.setattr(config, "find_spec", lambda module: None)
    message = f"--logger {name}: is not installed; pip install {name}"
    with pytest.raises(config.UserError, match=message):
        config.parse(["--logger", name])
