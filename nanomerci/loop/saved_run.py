"""A run folder, opened again: its options, its policies, its counter."""

from dataclasses import dataclass
from pathlib import Path

import torch

from nanomerci import cfn
from nanomerci.loop.model import load
from nanomerci.runtime import checkpoint
from nanomerci.runtime.config import Config, UserError, read


@dataclass(frozen=True)
class Run:
    """Where a model came from, if from a run of ours: its options and checkpoint."""

    folder: Path
    checkpoint: Path
    options: Config

    @classmethod
    def of(cls, name):
        """A run folder, or checkpoints/step_000040/model inside one -> Run; else None."""
        path = Path(name)
        place = checkpoint.newest(path) if (path / "checkpoints").is_dir() else path.parent
        if not (place / "state.pt").exists():
            return None
        folder = place.parent.parent
        return cls(folder, place, Config(**read(folder / "config.yaml")))

    def feature_model(self, policy):
        """Whose hidden states the run counts: its initial policy's, or those of `policy` itself."""
        first = self.folder / "checkpoints/step_000000/model"
        if self.options.cfn_features != "frozen" or not first.exists():
            return policy
        return load(first, policy.device, policy.dtype)[0]

    def counter(self, policy, device):
        """-> feature model, CoinFlipNet; (policy, None) if the run has no counter."""
        c = self.options
        if c.bonus != "cfn":
            return policy, None
        path = self.checkpoint / "state.pt"
        try:  # mmap: the optimizer's moments in the same file are not read
            state = torch.load(path, map_location=device, weights_only=True, mmap=True)
            net = cfn.CoinFlipNet(policy.config.hidden_size, c.coins, c.cfn_hidden, c.cfn_prior)
            net.to(device).load_state_dict(state["bonus"]["net"])
        except (OSError, RuntimeError, KeyError, EOFError) as error:
            message = f"{type(error).__name__}: {str(error)[:120]!r}"
            raise UserError(f"{path}: its counter cannot be read ({message})") from None
        return self.feature_model(policy), net
