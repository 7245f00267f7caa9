"""MERCI inside TRL's GRPOTrainer: sampling, LoRA and many GPUs from there, the bonus from here.

    trainer = MerciGRPOTrainer(model=..., reward_funcs=..., args=..., train_dataset=...,
                               merci=MerciConfig(gamma=0.5))

TRL samples, grades and normalises a batch in _generate_and_score_completions; after that the bonus
enters the advantages, and the visits are counted. How to use it: docs/trl.md.
"""

from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
import trl
from accelerate.utils import gather_object, is_peft_model
from trl import GRPOTrainer

from nanomerci.integrations.explorer import Explorer, MerciConfig
from nanomerci.runtime import ranks
from nanomerci.runtime.config import UserError

__all__ = ["MerciConfig", "MerciGRPOTrainer", "MerciMixin"]
LOWEST, NEWEST = "0.29.0", "1.16.0"  # versions of TRL with which tests/test_trl.py was run
HOOKS = {  # the methods that are extended here, and their parameters
    "_generate_and_score_completions": ["inputs"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
}
FIELDS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")


class Ranks:
    """What explorer.Alone has, over accelerate's processes."""

    def __init__(self, accelerator):
        self.accelerator, self.rank = accelerator, accelerator.process_index
        self.gather = gather_object

    def rows(self, x_BK):
        return self.accelerator.gather(self.accelerator.pad_across_processes(x_BK, dim=1))

    def sum_(self, x):
        return x.copy_(self.accelerator.reduce(x, "sum"))

    def max_(self, x):
        return x.copy_(self.accelerator.gather(x[None]).amax(0))


class MerciMixin:
    """For a subclass of GRPOTrainer: class Mine(MerciMixin, MyGRPOTrainer)."""

    def __init__(self, *args, merci=None, **kwargs):
        """merci: a MerciConfig. All else is the trainer's."""
        check_hooks(super())
        super().__init__(*args, **kwargs)
        options, tokenizer = merci or MerciConfig(), self.processing_class
        policy = self.accelerator.unwrap_model(self.model)
        features, reading = feature_model(options, policy, self.accelerator)
        self.merci = Explorer(options, features, tokenizer, Ranks(self.accelerator), reading)

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training:  # an evaluation
            return output
        check_output(output)
        step = self.state.global_step
        shaped, metrics = self.merci.shape(output, inputs, self.num_generations, step)
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)
        return output | {"advantages": shaped}

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        state = {"ranks": self.accelerator.num_processes} | self.merci.state_dict()
        torch.save(state, state_file(output_dir, self.accelerator))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file, ranks = state_file(checkpoint, self.accelerator), self.accelerator.num_processes
        found = file.exists()
        state = torch.load(file, self.accelerator.device, weights_only=True) if found else {}
        if state.get("ranks") != ranks:
            raise UserError(
                f"{file}: expected the state of a bonus, written by one of {ranks} processes; got "
                f"{state.get('ranks', 'none')}; resume with as many processes, from a checkpoint "
                "that MerciGRPOTrainer wrote"
            )
        self.merci.load_state_dict(state)


class MerciGRPOTrainer(MerciMixin, GRPOTrainer):
    """GRPOTrainer with MERCI's count-based exploration bonus in its advantages."""


def feature_model(options, policy, accelerator):
    """-> the transformer whose hidden states are counted, and the context in which to run it: a
    frozen copy of the policy, with LoRA the policy without its adapter, or the policy as it is.
    """
    peft, frozen = is_peft_model(policy), options.cfn_features == "frozen"
    stage = getattr(accelerator.state.deepspeed_plugin, "zero_stage", 0)
    if stage == 3 or accelerator.distributed_type == "FSDP" and (peft or not frozen):
        raise UserError(
            "MERCI's feature model needs whole weights on every rank; got ZeRO-3, or FSDP with "
            'LoRA or cfn_features="policy"; expected ZeRO-2, or FSDP with a frozen copy'
        )
    trunk = (policy.get_base_model() if peft else policy).base_model

    @contextmanager
    def without_adapter():
        with policy.disable_adapter(), accelerator.autocast():
            yield

    if peft and frozen:
        return trunk, without_adapter
    if frozen:
        trunk = ranks.cast_copy(trunk, policy.dtype, accelerator.device).eval()
    return trunk, accelerator.autocast


def state_file(folder, accelerator):
    return Path(folder) / f"merci_{accelerator.process_index:05d}.pt"


def check_hooks(trainer):
    """trainer: super() in a MerciMixin."""
    for name, expected in HOOKS.items():
        hook = getattr(trainer, name, None)
        found = list(signature(hook).parameters) if hook else None
        if found != expected:
            got = f"{name}({', '.join(found)})" if hook else "no such method"
            raise UserError(
                f"TRL {trl.__version__}: expected a trainer with {name}({', '.join(expected)}), "
                f"got {got}; MERCI works in GRPOTrainer of TRL {LOWEST} to {NEWEST}"
            )


def check_output(output):
    """UserError where the hook gives something else than it did so far, or images."""
    got = {name: tuple(output[name].shape) for name in FIELDS if name in output}
    tokens = got.get("completion_ids")
    if len(got) < len(FIELDS) or got["advantages"] not in (tokens, tokens[:1]):
        raise UserError(
            f"TRL {trl.__version__}: expected {', '.join(FIELDS)} per response or token from "
            f"{next(iter(HOOKS))}, got {got}; MERCI works with TRL {LOWEST} to {NEWEST}"
        )
    if "pixel_values" in output:
        raise UserError("MERCI's feature model reads text; got images; expected text only")
