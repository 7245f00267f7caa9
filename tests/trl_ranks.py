"""Three steps of MerciGRPOTrainer on fixed batches, by as many processes as torchrun starts:
tests/test_trl.py compares one and two.
"""

import os
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from nanomerci.integrations.trl import MerciConfig, MerciMixin

ROWS, GROUP = 12, 4


def first_word(text):
    return text.split()[0]


class Fixed(GRPOTrainer):
    """Its batch is a function of the step; a rank has its part of the rows."""

    def _generate_and_score_completions(self, inputs):
        rng = torch.Generator().manual_seed(self.state.global_step)
        prompt_ids = torch.randint(4, 12, (ROWS // GROUP, 3), generator=rng)
        length_B1 = torch.randint(1, 8, (ROWS, 1), generator=rng)
        completion_ids = torch.randint(4, 12, (ROWS, 8), generator=rng)
        batch = {
            "prompt_ids": prompt_ids.repeat_interleave(GROUP, 0),
            "completion_ids": completion_ids,
            "completion_mask": (torch.arange(8) < length_B1).long(),
            "advantages": torch.randn(ROWS, generator=rng),
        }
        batch["prompt_mask"] = torch.ones_like(batch["prompt_ids"])
        # ranks pad to their own longest
        first = self.accelerator.process_index * len(inputs)
        mine = {name: x[first : first + len(inputs)] for name, x in batch.items()}
        width = int(mine["completion_mask"].sum(1).max())
        for name in ("completion_ids", "completion_mask"):
            mine[name] = mine[name][:, :width]
        return mine | {"num_items_in_batch": batch["completion_mask"].sum()}


class Merci(MerciMixin, Fixed):
    def _generate_and_score_completions(self, inputs):
        first = self.accelerator.process_index * len(inputs)
        rows = [{"prompt": str((first + i) // GROUP)} for i in range(len(inputs))]
        output = super()._generate_and_score_completions(rows)
        merged_B = self.accelerator.gather(output["advantages"])
        self.merged = [*getattr(self, "merged", ()), merged_B]
        return output


def train(model, bonus, out):
    args = GRPOConfig(
        f"{out}-{bonus}",
        per_device_train_batch_size=ROWS // int(os.environ["WORLD_SIZE"]),
        num_generations=GROUP,
        max_steps=3,
        learning_rate=1e-3,
        loss_type="grpo",
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
    )
    trainer = Merci(
        AutoModelForCausalLM.from_pretrained(model),
        lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * ROWS),
        processing_class=AutoTokenizer.from_pretrained(model),
        merci=MerciConfig(bonus=bonus, run=1, cfn_hidden=16, cfn_pretrain=1, answer=first_word),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    names = [name for name in logged[0] if name.startswith(("merci/", "cfn/"))]
    result = {name: torch.tensor([row[name] for row in logged]) for name in names}
    result["merged"] = torch.stack(trainer.merged)
    result |= {name: p.detach() for name, p in trainer.model.named_parameters()}
    if bonus == "cfn":
        head = trainer.merci.bonus.counter.net.head
        result |= {f"head {name}": p.detach() for name, p in head.named_parameters()}
        result["replay"] = torch.tensor(trainer.merci.bonus.counter.replay.total)
    if trainer.accelerator.is_main_process:
        torch.save(result, f"{out}-{bonus}.pt")


if __name__ == "__main__":
    for bonus in ("cfn", "outcome"):
        train(sys.argv[1], bonus, sys.argv[2])
