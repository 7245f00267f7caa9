"""MERCI inside TRL's trainer: its advantages are our own loop's, and without the bonus it is plain
GRPOTrainer.
"""

import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT
from once import WORDS, Once

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    reason = "TRL is optional and not installed: pip install -e '.[trl]'"
    pytest.importorskip("trl", reason=reason, exc_type=ImportError)
    from trl import GRPOConfig, GRPOTrainer

    from nanomerci.integrations.explorer import Explorer, right_padded
    from nanomerci.integrations.trl import MerciConfig, MerciGRPOTrainer, MerciMixin, feature_model

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from nanomerci import bonuses, grpo, merci, tasks
from nanomerci.loop.collect import Collector
from nanomerci.loop.model import StateReader
from nanomerci.loop.rollout import Batch
from nanomerci.loop.warmstart import tiny_policy
from nanomerci.runtime import config, ranks
from nanomerci.runtime.config import UserError
from nanomerci.sample import Sampler
from nanomerci.tasks import pick
from nanomerci.tasks.graders.pool import Pool

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own
SMALL = {"run": 1, "cfn_hidden": 16, "cfn_pretrain": 1}
G = 4
TASK = Once()


def row(problem):
    """Of a data set: our prompt, as a conversation."""
    return {"prompt": [{"role": "user", "content": problem.prompt}], "id": problem.id}


class Place(NamedTuple):
    """What is trained, and on what."""

    task: object
    folder: Path
    length: int = 8
    """Tokens of a response."""

    def reward(self, prompts, completions, **_):
        by_prompt = {p.prompt: p for p in (*self.task.train, *self.task.test)}
        rewards = []
        for asked, said in zip(prompts, completions, strict=True):
            problem = by_prompt[asked[-1]["content"]]
            grade, *given = self.task.job(problem, said[-1]["content"])
            rewards.append(grade(*given).reward)
        return rewards


@pytest.fixture
def make(small_model, tmp_path):
    """make(cls, merci, **arguments of GRPOConfig or of the trainer): a trainer."""

    def trainer(cls=MerciGRPOTrainer, merci=SMALL, model=None, place=None, **given):
        task, folder, length = place = place or Place(TASK, small_model(WORDS))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = model or AutoModelForCausalLM.from_pretrained(folder)
        keys = "peft_config", "eval_dataset", "reward_funcs"
        own = {"reward_funcs": place.reward} | {key: given.pop(key) for key in keys if key in given}
        if cls is not GRPOTrainer:
            own["merci"] = MerciConfig(**merci)
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 16,
            "num_generations": G,
            "max_completion_length": length,
            "max_steps": 4,
            "learning_rate": 3e-3,
            "loss_type": "grpo",
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "gradient_checkpointing": False,
        }
        args = GRPOConfig(**arguments | given)
        data = Dataset.from_list(list(map(row, task.train)))
        return cls(model, args=args, train_dataset=data, processing_class=tokenizer, **own)

    return trainer


def steps(trainer, *also):
    """What was logged in each step, of these metrics."""
    names = "loss", "grad_norm", "reward", *also
    return [[row[name] for name in names] for row in trainer.state.log_history if "loss" in row]


def same(a, b):
    """Equal bit for bit, in nests of dicts and lists."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def batch_of(prompts, responses, **also):
    """Token ids -> as TRL's hook gives them: prompts padded on the left, responses on the right."""
    P, C = max(map(len, prompts)), max(map(len, responses))
    left = [([0] * (P - len(p)) + p, [0] * (P - len(p)) + [1] * len(p)) for p in prompts]
    right = [(r + [0] * (C - len(r)), [1] * len(r) + [0] * (C - len(r))) for r in responses]
    columns = (torch.tensor(x) for x in (*zip(*left, strict=True), *zip(*right, strict=True)))
    names = "prompt_ids", "prompt_mask", "completion_ids", "completion_mask"
    return dict(zip(names, columns, strict=True)) | also


@pytest.fixture
def explorer(small_model):
    """explorer(**options of MerciConfig): without a trainer, past its pre-training."""
    folder = small_model(WORDS)
    features = AutoModelForCausalLM.from_pretrained(folder).base_model
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def make(**options):
        made = Explorer(MerciConfig(**SMALL | options), features, tokenizer)
        made.rounds = 1
        return made

    return make


ROWS = [{"prompt": "a"}] * G + [{"prompt": "b"}] * G
PROMPTS = [[4, 5]] * G + [[6, 7, 8, 9]] * G
RESPONSES = [[5, 6, 1], [7] * 6, [5, 1], [9, 4, 8, 1], [4, 1], [5, 5, 5, 1], [8, 9, 7, 6], [6, 1]]
ADV = torch.tensor([1.2, -0.6, -0.6, 0.0, 0.7, 0.7, -1.4, 0.0])


# ---- the same advantages as our own loop
FILTERS = [
    {},
    {"run": 2},
    {"run": 3},
    {"top": 1.0},
    {"noise_filter": False},
    {"top": 1.0, "noise_filter": False},
    {"bonus_form": "deviation"},
    {"bonus_form": "sum"},
    {"credit": "token"},
    {"credit": "token", "run": 2, "noise_filter": False},
    {"bonus_on_zero_variance": True},
    {"credit": "token", "bonus_on_zero_variance": True},
    {"bonus": "elliptical"},
    {"bonus": "exact"},
    {"bonus": "outcome"},
]


class Replay:
    """A sampler that returns what TRL's trainer sampled."""

    def __init__(self, sampler, output):
        self.model, self.tokenizer = sampler.model, sampler.tokenizer
        self.rollout = right_padded(output)[0]

    def __call__(self, prompts, n, *, seed, options):
        asked = [prompt for prompt in prompts for _ in range(n)]
        starts = self.rollout.mask_BT.argmax(1).tolist()
        mine = zip(self.rollout.tokens_BT.tolist(), starts, strict=True)
        assert [tokens[:start] for tokens, start in mine] == asked
        return self.rollout


def our_batch(c, output, place):
    """Our own loop on the completions that TRL's trainer sampled, its counter pre-trained on
    others. -> Batch, the bonus.
    """
    model = AutoModelForCausalLM.from_pretrained(place.folder)
    sampler = Sampler(model, AutoTokenizer.from_pretrained(place.folder), c.max_new_tokens)
    bonus = bonuses.find(c.bonus)(c, model.config.hidden_size, torch.device("cpu"), ranks)
    frozen = ranks.cast_copy(model, torch.float32, "cpu").eval()
    reader = StateReader(frozen, bonus.score) if bonus.counts_states else None
    with Pool(1) as pool:
        collector = Collector(c, place.task, sampler, reader, bonus, pool)
        if bonus.pretrains:
            collector.visit_before_training()
            bonus.before_training(collector.take_visits())
        collector.sampler = Replay(sampler, output)
        return Batch.of(collector.round(lambda name: None), c.group, "cpu"), bonus


def hook(trainer, rows):
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def compare_with_our_own(options, make, place):
    """MerciGRPOTrainer and our own loop on the completions that plain GRPOTrainer sampled. ->
    whether the bonus changed an advantage.
    """
    task, _, length = place
    given = SMALL | options
    c = config.Config(**{"prompts": 4, "group": G, "max_new_tokens": length} | given)
    by_prompt = {problem.prompt: problem for problem in task.train}
    problems = pick(task.train, range(c.prompts), c.seed)
    rows = [row(problem) for problem in problems for _ in range(G)]
    sampled = hook(make(GRPOTrainer, place=place), rows)
    adv_B = sampled["advantages"]
    batch, bonus = our_batch(c, sampled, place)
    ours = grpo.advantage(batch.reward_PG)  # divides by std + 1e-6, TRL by std + 1e-4
    torch.testing.assert_close(ours.flatten(), adv_B, rtol=1e-3, atol=1e-6)
    shaped = bonus.merge(batch, adv_B.view(-1, G), 0.5, 1)

    def noise(row, text):
        return task.noise(by_prompt[row["prompt"][-1]["content"]], text)

    trainer = make(merci=given | {"noise": noise, "answer": task.answer}, place=place)
    trainer.merci.bonus.load_state_dict(bonus.state_dict())
    trainer.merci.rounds = 1
    output = hook(trainer, rows)
    assert torch.equal(output["completion_ids"], sampled["completion_ids"])
    merged = output["advantages"]
    if shaped.dim() == 2:
        mask_BC = output["completion_mask"]
        shaped, merged = shaped.gather(1, right_padded(output)[1]) * mask_BC, merged * mask_BC
    # z-scores divide the rounding of a bonus, 6e-8 of it, by at least a hundredth of it
    torch.testing.assert_close(merged, shaped, rtol=0, atol=1e-5)
    return not torch.equal(shaped.view(len(adv_B), -1)[:, 0], adv_B)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_merged_advantages_are_those_of_our_own_loop(options, make, small_model):
    assert compare_with_our_own(options, make, Place(TASK, small_model(WORDS)))


@pytest.fixture(scope="module")
def toy_sql():
    """The default task, and the policy that its SFT warm start makes."""
    task = tasks.load(config.parse(["toy_sql"]))
    model, tokenizer = tiny_policy(task)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        yield Place(task, Path(folder), 48)


@pytest.mark.slow  # trains the warm start where it is not cached
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_merged_advantages_on_toy_sql(options, make, toy_sql):
    changed = compare_with_our_own(options, make, toy_sql)
    assert changed or options == {"run": 3}  # which leaves hardly a token of responses this short


# ---- without the bonus, plain GRPOTrainer
def with_dropout(folder):
    """A model whose forward passes in training draw from the global random state."""
    model = AutoModelForCausalLM.from_pretrained(folder, attention_dropout=0.1)
    assert model.model.layers[0].self_attn.attention_dropout == 0.1
    return model


def test_gamma_0_is_plain_grpo_bit_for_bit(make, small_model):
    def trained(cls=MerciGRPOTrainer, steps=5, **options):
        trainer = make(cls, SMALL | options, with_dropout(small_model(WORDS)), max_steps=steps)
        trainer.train()
        return trainer

    plain = trained(GRPOTrainer)
    off = {"gamma": 0.0, "gamma_decay": 0}
    for options in ({}, {"cfn_features": "policy", "credit": "token"}):
        merci_off = trained(**off | options)
        assert steps(merci_off) == steps(plain)
        assert same(merci_off.model.state_dict(), plain.model.state_dict())
        assert merci_off.merci.rounds == 5
    with_bonus = steps(trained(steps=2))
    assert with_bonus[0] == steps(plain)[0]  # which taught the counter
    assert with_bonus[1] != steps(plain)[1]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["frozen", "policy"])
def test_gamma_0_on_toy_sql(make, toy_sql, features):
    def trained(cls=MerciGRPOTrainer, **options):
        trainer = make(cls, SMALL | {"gamma_decay": 0} | options, place=toy_sql, max_steps=5)
        trainer.train()
        return trainer

    plain = trained(GRPOTrainer)
    off = trained(gamma=0.0, cfn_features=features)
    assert steps(off) == steps(plain) and len(steps(off)) == 5
    assert same(off.model.state_dict(), plain.model.state_dict())
    assert steps(trained(gamma=0.5, cfn_features=features)) != steps(plain)


@pytest.mark.parametrize("bonus", ["cfn", "elliptical", "exact", "outcome", "random"])
def test_the_global_random_state_is_left_alone(explorer, bonus):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    made = explorer(bonus=bonus)
    made.features.train()
    made.rounds = 0
    for step in range(2):
        made.shape(batch_of(PROMPTS, RESPONSES, advantages=ADV), ROWS, G, step)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert made.features.training


# ---- what is read, counted and compared
def test_padding_tools_and_truncated_responses(explorer):
    """Novelty is that of the row by itself; tools' tokens and responses without a token to learn
    from are neither read, nor counted, nor in the group's mean.
    """
    made = explorer(run=1, top=0.5)
    batch = batch_of(PROMPTS, RESPONSES, advantages=ADV)
    batch["tool_mask"] = torch.ones_like(batch["completion_ids"])
    batch["tool_mask"][1, 2:4] = 0
    batch["completion_mask"][6] = 0  # mask_truncated_completions
    rollout, at_BC = right_padded(batch)
    visits = made.visit(rollout, ROWS, [""] * len(ROWS))
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        hidden_1TD = made.features(torch.tensor([prompt + response])).last_hidden_state
        alone_T = made.bonus.score(hidden_1TD[0, len(prompt) :])
        visited_T = (batch["completion_mask"] * batch["tool_mask"])[b, : len(response)]
        visited_T[visited_T.nonzero()[-1:, 0]] = 0  # the last state is terminal
        wanted_T = alone_T * visited_T
        novelty_T = visits.novelty_BT[b].gather(0, at_BC[b])[: len(response)]
        torch.testing.assert_close(novelty_T, wanted_T)
    tokens = sum(map(len, RESPONSES)) - 2 - len(RESPONSES[6]) - (len(RESPONSES) - 1)
    assert len(visits.address_N) == len(visits.hidden_ND) == tokens

    shaped_B, metrics = made.shape(batch, ROWS, G, 0)
    assert made.bonus.counter.replay.total == tokens
    kept_BT = merci.percentile(visits.novelty_BT, rollout.mask_BT, 0.5)
    bonus_B = merci.trajectory_bonus(visits.novelty_BT, kept_BT, rollout.mask_BT)
    first_1G = merci.exploration_advantage(bonus_B[None, :4])
    others_13 = merci.exploration_advantage(bonus_B[None, [4, 5, 7]])
    extra_B = torch.cat([first_1G[0], others_13[0, :2], torch.zeros(1), others_13[0, 2:]])
    torch.testing.assert_close(shaped_B, merci.merge(ADV, extra_B, 0.5, 0.5))
    assert metrics["merci/bonus"] == pytest.approx(float(bonus_B.sum()) / 7)


def test_advantages_per_response_and_per_token(explorer):
    batch = batch_of(PROMPTS, RESPONSES, advantages=ADV)
    per_response, _ = explorer().shape(batch, ROWS, G, 0)
    wide = ADV[:, None] * torch.arange(1.0, batch["completion_ids"].shape[1] + 1)
    per_token, _ = explorer().shape(batch | {"advantages": wide}, ROWS, G, 0)
    assert per_response.shape == ADV.shape and per_token.shape == wide.shape
    assert torch.equal(per_token[:, 0], per_response)  # times 1
    assert (per_token >= wide).all() and (per_token - wide <= 0.5 * wide.abs() + 1e-6).all()


def test_all_responses_truncated(explorer):
    batch = batch_of(PROMPTS, RESPONSES, advantages=ADV)
    batch["completion_mask"] *= 0
    for credit in ("response", "token"):
        shaped, metrics = explorer(credit=credit).shape(batch, ROWS, G, 0)
        assert torch.equal(shaped, ADV if credit == "response" else ADV[:, None].expand_as(shaped))
        assert metrics["merci/bonus"] == metrics["cfn/invn"] == 0


def test_each_generation_batch_is_scored_and_counted_once(make):
    """With gradient accumulation and several iterations over a batch."""
    seen = []

    def counted(prompts, completions, completion_ids, **_):
        seen.append(sum(len(ids) - 1 for ids in completion_ids))  # the last state is terminal
        return Place(TASK, None).reward(prompts, completions)

    trainer = make(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        max_steps=8,
        reward_funcs=counted,
    )
    trainer.train()
    assert trainer.merci.rounds == len(seen) == 2  # 8 updates of 2 slices, a batch has 4, twice
    assert trainer.merci.bonus.counter.replay.total == sum(seen)


def test_evaluation_leaves_the_counter_alone(make):
    data = Dataset.from_list(list(map(row, TASK.test)))
    trainer = make(eval_dataset=data, per_device_eval_batch_size=8, max_steps=2)
    trainer.train()
    before = trainer.merci.state_dict()
    before = torch.load(saved(before), weights_only=True)
    logged = trainer.evaluate()
    assert same(before, torch.load(saved(trainer.merci.state_dict()), weights_only=True))
    assert not [name for name in logged if "merci" in name]


def saved(state):
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_metrics_are_logged_by_the_names_of_the_glossary(make):
    trainer = make(max_steps=2)
    trainer.train()
    logged = {name for name in trainer.state.log_history[0] if re.match("merci/|cfn/", name)}
    files = {ROOT / "README.md", *(ROOT / "docs").glob("*.md")} - {ROOT / "docs/trl.md"}
    documented = set(re.findall("`([a-z_/]+)`", "".join(map(Path.read_text, files))))
    assert len(logged) == 9 and logged <= documented
    share, gamma = zip(*(x[3:] for x in steps(trainer, "merci/share", "merci/gamma")), strict=True)
    assert share[0] == gamma[0] == 0  # the first batch teaches the counter
    assert 0 < share[1] < 1 and gamma[1] == merci.gamma_at(1, 0.5, 200)


# ---- checkpoints
RESUMED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def test_a_resumed_run_is_the_uninterrupted_one(make, small_model, tmp_path):
    names = "merci/bonus", "merci/share", "cfn/loss"
    whole = make(output_dir=str(tmp_path / "whole"), **RESUMED)
    whole.train()
    second = make(output_dir=str(tmp_path / "second"), **RESUMED)
    second.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert steps(second, *names) == steps(whole, *names)
    assert same(second.model.state_dict(), whole.model.state_dict())
    assert same(second.merci.state_dict(), whole.merci.state_dict())
    assert second.merci.rounds == 4

    plain = make(GRPOTrainer, output_dir=str(tmp_path / "plain"), **RESUMED)
    plain.train()
    with pytest.raises(UserError, match="merci_00000.pt: expected the state of a bonus.*got none"):
        make(**RESUMED).train(resume_from_checkpoint=str(tmp_path / "plain/checkpoint-2"))
    learned = AutoModelForCausalLM.from_pretrained(tmp_path / "whole/checkpoint-2")
    with pytest.raises(UserError, match="expected the same initial model"):
        make(model=learned, **RESUMED).train(
            resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2")
        )


# ---- LoRA
def test_lora_without_its_adapter_is_the_frozen_copy(make, small_model):
    peft = pytest.importorskip("peft", reason="peft is optional and not installed")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4, task_type="CAUSAL_LM")
    trainer = make(peft_config=lora, learning_rate=0.05, gradient_checkpointing=True)
    assert trainer.merci.features is trainer.model.get_base_model().base_model  # no memory
    trainer.train()
    assert all(x[3] > 0 for x in steps(trainer, "merci/share")[1:])
    initial = AutoModelForCausalLM.from_pretrained(small_model(WORDS))
    rollout, _ = right_padded(batch_of(PROMPTS, RESPONSES))
    address_BT = torch.zeros_like(rollout.tokens_BT)
    frozen = trainer.merci.read(rollout, address_BT)["hidden_ND"]
    _, _, wanted, _ = StateReader(SimpleNamespace(base_model=initial.base_model), whole=True)(
        rollout, address_BT
    )
    torch.testing.assert_close(frozen, wanted)
    _, _, policy, _ = trainer.merci.reader(rollout, address_BT)  # adapter on
    assert not torch.allclose(policy, wanted, atol=1e-3)
    assert any(p.requires_grad for p in trainer.model.parameters())


# ---- ranks
@pytest.mark.slow
def test_two_ranks_are_one(tmp_path, small_model):
    """Groups straddle them: 6 rows each, in groups of 4. cfn and outcome."""
    folder, script = str(small_model(WORDS)), str(ROOT / "tests/trl_ranks.py")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count in "12":
        command = [*run, count, script, folder, str(tmp_path / count)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run(command, check=True, cwd=ROOT, env=env)
    for bonus in ("cfn", "outcome"):
        one, two = (torch.load(tmp_path / f"{count}-{bonus}.pt") for count in "12")
        assert one["merci/share"][1:].min() > 0
        for name in one:  # sums come out in another order; z-scores and AdamW enlarge that
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)


# ---- errors in one line
def test_a_missing_hook_or_one_of_another_shape_is_named(make):
    class Later(GRPOTrainer):
        def _generate_and_score_completions(self, inputs, cache):
            return super()._generate_and_score_completions(inputs)

    class Answers(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            return output | {"advantages": output["advantages"][None]}

    cases = (
        (type("A", (MerciMixin, Later), {}), r"got _generate_.*\(inputs, cache\)"),
        (type("B", (MerciMixin, Trainer), {}), "got no such method"),
    )
    for cls, words in cases:
        with pytest.raises(UserError, match=words) as error:
            make(cls)
        assert "\n" not in str(error.value) and "TRL" in str(error.value)
    with pytest.raises(UserError, match="expected prompt_ids, .* per response or token"):
        make(type("C", (MerciMixin, Answers), {})).train()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0}, r"gamma=-1.0\): expected 0 or more"),
        ({"credit": "word"}, "credit='word'\\): expected response or token"),
        ({"bonus": "rnd"}, "expected elliptical, cfn|expected .*cfn.*random"),
        ({"bonus": "entropy"}, "by MERCI's rule"),
        ({"bonus": "cfm"}, "did you mean cfn"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(UserError, match=words):
        MerciConfig(**options)


def test_surprisal_wants_log_probs(explorer):
    batch = batch_of(PROMPTS, RESPONSES, advantages=ADV)
    with pytest.raises(UserError, match="log-probs"):
        explorer(bonus="surprisal").shape(batch, ROWS, G, 0)
    logp_BC = -torch.rand(batch["completion_ids"].shape)
    made = explorer(bonus="surprisal", top=1.0)
    _, metrics = made.shape(batch | {"old_per_token_logps": logp_BC}, ROWS, G, 0)
    mask_BC = batch["completion_mask"]
    wanted = float(-(logp_BC * mask_BC).sum() / mask_BC.sum())
    assert metrics["cfn/invn"] == pytest.approx(wanted, rel=1e-5)


def test_sharded_weights_are_refused(small_model):
    """What accelerate says of ZeRO-3; no DeepSpeed here."""
    policy = AutoModelForCausalLM.from_pretrained(small_model(WORDS))
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    accelerator = SimpleNamespace(state=state, distributed_type="DEEPSPEED")
    with pytest.raises(UserError, match="whole weights on every rank"):
        feature_model(MerciConfig(), policy, accelerator)
