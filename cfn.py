"""Coin Flipping Network: approximate visit counts for continuous states (Lobel, Bagaria,
Konidaris, ICML 2023).

Toss C fair coins c in {-1, +1} at every visit of a state s and let a network f(s) regress on them.
Where s was visited n times the best it can do is the average of n tosses, and the average of n fair
coins has mean 0 and variance 1/n. So the mean of f(s)^2 over the C coins estimates 1/n, and a
network shares the counts between states that look alike to it.

Here: coins fixed by the address of the visit, a network with a frozen random prior, the loss, a
bounded replay of past visits, learning. Not here: where hidden states come from
(nanomerci/loop/model.py), what a count is worth (nanomerci/merci.py). Run alone: `python cfn.py`
counts a table of states and prints the true 1/n beside the estimate.

Axes: N visits (flattened tokens), D hidden width, C coins, H width of the head.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from nanomerci.address import address, uniform

ROWS = 8192  # states scored in one go


def draw_coins(address_N, coins):  # [CFN:coins]
    """Fair coins of each visit. address_N int64 -> float (N, C) of -1 and +1, the same whenever the
    address is the same.

    The coins of a visit stay fixed: resampled at each training pass they would average to 0,
    "visited infinitely often".
    """
    bits_NC = address(address_N[:, None], torch.arange(coins, device=address_N.device))
    return torch.where(bits_NC < 0, -1.0, 1.0)


def inverse_count(flips_NC):  # [CFN:inverse-count]
    """f(s) -> 1/n(s): the average of n fair coins has variance 1/n. (N, C) -> (N,), float32."""
    return flips_NC.float().square().mean(-1)


def coin_loss(flips_NC, coins_NC):  # [CFN:loss]
    """(1/C) ||c - f(s)||^2 of each visit (Lobel et al., eq. 3). (N, C), (N, C) -> (N,).

    1.0 is what predicting nothing scores; an untrained network scores about 2, its prior on top.
    """
    return (coins_NC - flips_NC).square().mean(-1)


def expected_inverse_count(x_ND, gram_DD, ridge, prior_var=0.0):  # [CFN:coins-integrated-out]
    """What a CFN with a *linear* head reads on average over all coins, without tossing one. (N, D),
    (D, D) -> (N,).

    Fit f(x) = x W to the coins c of visits X by least squares with weight decay `ridge`: W = A^-1
    X'c, A = X'X + ridge. Fair coins have E[c c'] = I, so E[f(x)^2] = x' A^-1 X'X A^-1 x: a ridge
    estimate, exact and free of SGD; gram_DD is X'X. If the decay pulls towards a random prior of
    weights of variance prior_var, that adds ridge^2 prior_var x' A^-2 x; with prior_var = 1/ridge
    the two make x' A^-1 x, the elliptical bonus of linear bandits: 1 / (n + ridge) on one-hot
    states.

    It also says what no linear counter can do: over the visits X these readings add up to at most
    D, where the true 1/n add up to the number of different states. D features tell at most D states
    apart; beyond that, look-alikes are counted together.
    """
    identity_DD = torch.eye(len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device)
    y_DN = torch.linalg.solve(gram_DD + ridge * identity_DD, x_ND.T)
    return (y_DN * (gram_DD @ y_DN + ridge**2 * prior_var * y_DN)).sum(0)


class CoinFlipNet(nn.Module):
    """hidden_ND -> flips_NC = head(x) + (prior(x) - mean) / sd, with x the normalised hidden state.

    The prior is a frozen random network of the head's shape, normalised so that over visited states
    its outputs have mean 0 and variance 1; the last layer of the head starts at 0. So before any
    training 1/n reads about 1 everywhere, and where training never went it still does: optimism for
    unseen states (Lobel et al., section 4). Without it (prior=False) an unseen state reads 0,
    "visited infinitely often". `hidden=0` makes head and prior linear without bias: on one-hot
    states, a table.
    """

    def __init__(self, width, coins=20, hidden=128, prior=True, seed=0):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.head, self.prior = (self._mlp(width, hidden, coins, rng) for _ in range(2))
        nn.init.zeros_(self.head[-1].weight)
        self.prior.requires_grad_(False)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))
        self.register_buffer("prior_mean_C", torch.zeros(coins))
        self.register_buffer("prior_scale_C", torch.full((coins,), float(prior)))

    @staticmethod
    def _mlp(width, hidden, coins, rng):
        sizes = (width, hidden, coins) if hidden else (width, coins)
        layers = []
        for fan_in, fan_out in pairwise(sizes):
            # without the default initialisation, which would draw from the global generator
            linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, bias=hidden > 0)
            nn.init.normal_(linear.weight, std=fan_in**-0.5, generator=rng)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    @torch.no_grad()
    def calibrate(self, hidden_ND, features=True, all_sum=lambda x: x):
        """Measure the normalisation of features and prior once, on visited states; then frozen, so
        that a prior never moves.

        features=False leaves the features as they are (one-hot states are orthogonal and should
        stay so). all_sum: sums a tensor over ranks, so that all ranks end with the same moments.
        """
        count = all_sum(torch.tensor(float(len(hidden_ND)), device=hidden_ND.device)).clamp(min=1)

        def fit(mean, scale, x_N):
            mean.copy_(all_sum(x_N.sum(0)) / count)
            variance = all_sum((x_N - mean).square().sum(0)) / count
            scale.copy_((variance + 1e-6).rsqrt())

        if features:
            fit(self.mean_D, self.scale_D, hidden_ND.float())
        if self.prior_scale_C.any():
            prior_NC = self.prior(self.normalise(hidden_ND))
            fit(self.prior_mean_C, self.prior_scale_C, prior_NC)

    def normalise(self, hidden_ND):
        return (hidden_ND.float() - self.mean_D) * self.scale_D

    def forward(self, hidden_ND):
        x_ND = self.normalise(hidden_ND)
        return self.head(x_ND) + (self.prior(x_ND) - self.prior_mean_C) * self.prior_scale_C


class ReplayBuffer:
    """A uniform sample of at most about `capacity` of all visits ever made, chosen by address.

    A visit stays while uniform(its address) < capacity / visits so far. That is a fair sample of
    the whole run, so counts keep their proportions; and it is the same sample however the visits
    were ordered or split over ranks.
    """

    def __init__(self, capacity, width, dtype=torch.float16, device=None):
        self.capacity, self.total = capacity, 0
        self.hidden_ND = torch.zeros(0, width, dtype=dtype, device=device)
        self.address_N = torch.zeros(0, dtype=torch.int64, device=device)

    def add(self, hidden_ND, address_N, total):
        """total: how many visits all ranks have made so far, these included."""
        self.total = total
        hidden_ND = torch.cat([self.hidden_ND, hidden_ND.to(self.hidden_ND.dtype)])
        address_N = torch.cat([self.address_N, address_N])
        keep_N = uniform(address("keep", address_N)) < self.capacity / max(total, 1)
        self.hidden_ND, self.address_N = hidden_ND[keep_N], address_N[keep_N]

    def draw(self, count, stamp):
        """About `count` (over all ranks) of the visits kept, chosen anew for each stamp."""
        kept = max(min(self.total, self.capacity), 1)  # about so many are here
        pick_N = uniform(address("replay", stamp, self.address_N)) < count / kept
        return self.hidden_ND[pick_N].float(), self.address_N[pick_N]

    def state_dict(self):
        return {"hidden_ND": self.hidden_ND, "address_N": self.address_N, "total": self.total}

    def load_state_dict(self, state):
        self.hidden_ND, self.address_N = state["hidden_ND"], state["address_N"]
        self.total = state["total"]


@dataclass(frozen=True)
class CounterOptions:
    coins: int = 20
    """C, coins per visit (MERCI, CFN: 20)."""
    hidden: int = 256
    """H, width of the head's hidden layer; 0: linear."""
    prior: bool = True
    """Whether unseen states read 1/n near 1."""
    lr: float = 1e-3
    capacity: int = 65536
    """Visits that the replay buffer remembers."""
    batch: int = 512
    """Visits per update of the head, over all ranks."""


class Counter:
    """A CoinFlipNet with what it needs to learn: optimiser and replay buffer. Call score() before
    update(): the bonus uses counts from before the current batch.
    """

    targets = staticmethod(draw_coins)

    def __init__(self, width, *, seed=0, device=None, all_sum=lambda x: x, **options):
        """width: of a hidden state; options: those of CounterOptions."""
        o = CounterOptions(**options)
        self.net = CoinFlipNet(width, o.coins, o.hidden, o.prior, seed).to(device)
        self.optimizer = torch.optim.AdamW(self.net.head.parameters(), lr=o.lr, weight_decay=0.0)
        self.replay = ReplayBuffer(o.capacity, width, device=device)
        self.batch, self.all_sum = o.batch, all_sum

    @torch.no_grad()
    def score(self, hidden_ND):
        """1/n of each state. (N, D) -> (N,); kernels/cfn_score.py does the same in one pass."""
        return torch.cat([inverse_count(self.net(part_ND)) for part_ND in hidden_ND.split(ROWS)])

    def pretrain(self, hidden_ND, address_N, epochs):
        """Fit the normalisation on these visits, then learn them in several passes. -> loss of the
        last pass.
        """
        self.net.calibrate(hidden_ND, all_sum=self.all_sum)
        self.replay.add(hidden_ND, address_N, self._everywhere(address_N))
        return self.learn(hidden_ND, address_N, epochs)

    def update(self, hidden_ND, address_N, replayed, stamp):
        """Learn the new visits together with about `replayed` remembered ones, then remember the
        new. -> loss.
        """
        old_hidden_ND, old_address_N = self.replay.draw(replayed, stamp)
        both_ND = torch.cat([hidden_ND.float(), old_hidden_ND])
        loss = self.learn(both_ND, torch.cat([address_N, old_address_N]), 1)
        self.replay.add(hidden_ND, address_N, self.replay.total + self._everywhere(address_N))
        return loss

    def learn(self, hidden_ND, address_N, epochs):
        """Regress on the coins of these visits: `epochs` times over them in batches of about
        self.batch (over all ranks).

        Which batch a visit falls in is a hash of its address, so every rank layout makes the same
        updates. Returns the mean loss of the last epoch, before its updates (a float; the best
        there is is 1 - mean 1/n).
        """
        coins_NC = self.targets(address_N, self.net.head[-1].out_features)
        batches = max(1, round(self._everywhere(address_N) / self.batch))
        for epoch in range(epochs):
            batch_N = (uniform(address("pass", epoch, address_N)) * batches).long()
            losses = torch.zeros(2, device=hidden_ND.device)
            for b in range(batches):
                rows = (batch_N == b).nonzero()[:, 0]
                loss_N = coin_loss(self.net(hidden_ND[rows]), coins_NC[rows])
                here = torch.tensor(float(len(rows)), device=loss_N.device)
                total = self.all_sum(torch.stack([loss_N.detach().sum(), here]))
                self.optimizer.zero_grad()
                (loss_N.sum() / total[1].clamp(min=1)).backward()
                for parameter in self.net.head.parameters():
                    self.all_sum(parameter.grad)
                self.optimizer.step()
                losses += total
        return float(losses[0] / losses[1].clamp(min=1))

    def _everywhere(self, address_N):
        """How many visits these are over all ranks."""
        return int(self.all_sum(torch.tensor(len(address_N), device=address_N.device)))

    def state_dict(self):
        """What all ranks share; under "own" this rank's part of the replay buffer."""
        shared = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        return shared | {"own": self.replay.state_dict()}

    def load_state_dict(self, state):
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.replay.load_state_dict(state["own"])


if __name__ == "__main__":
    visits = [0, 0, 1, 1, 2, 2, 4, 8, 16, 64, 256]
    state_N = torch.tensor([s for s, n in enumerate(visits) for _ in range(n)])
    one_hot_SD = torch.eye(len(visits))
    net = CoinFlipNet(len(visits), coins=4096, hidden=0)
    net.calibrate(one_hot_SD, features=False)
    optimizer = torch.optim.LBFGS(
        net.head.parameters(), max_iter=100, line_search_fn="strong_wolfe"
    )
    coins_NC = draw_coins(address("visit", torch.arange(len(state_N))), 4096)

    def closure():
        optimizer.zero_grad()
        loss = coin_loss(net(one_hot_SD[state_N]), coins_NC).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    print(
        "state  visits     1/n  estimate   (4096 coins; a state never visited counts as one "
        "visit: optimism)"
    )
    estimates = inverse_count(net(one_hot_SD)).tolist()
    for s, (n, estimate) in enumerate(zip(visits, estimates, strict=True)):
        print(f"{s:5d} {n:7d} {1 / max(n, 1):7.4f} {estimate:9.4f}")
