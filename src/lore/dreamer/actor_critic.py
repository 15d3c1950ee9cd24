"""Actor and critic, learned from imagined rollouts and replayed returns.

Source: Hafner et al. 2023 (arXiv 2301.04104), sections "Critic learning" and "Actor learning";
danijar/dreamerv3, dreamerv3/agent.py (imag_loss, repl_loss).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import Batch
from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.returns import ReturnScale, lambda_return
from lore.dreamer.rssm import Imagined
from lore.nn import fused
from lore.nn.distributions import TwoHot, symexp_bins
from lore.nn.layers import MLP

LAYERS = 3
Regularise = Callable[[Tensor, Tensor], "tuple[Tensor, dict[str, Tensor]] | None"]
"""Features (H, N, F) and the policy's log-probabilities (A, H, N) -> a bonus (H, N) and metrics, or None."""


class SlowCopy:
    """An exponential moving average of a module's float32 weights, computed with in `dtype`."""

    def __init__(self, source: nn.Module, rate: float, dtype: torch.dtype):
        """Copy a module.

        Args:
            source: The module.
            rate: Share of the way to the source that an update goes, in (0, 1].
            dtype: Compute type of the copy.
        """
        self.rate = rate
        self.masters = [p.detach().clone().float() for p in source.parameters()]
        self.module = copy.deepcopy(source).to(dtype).requires_grad_(False)

    def update(self, source: list[Tensor]) -> None:
        """Move the copy towards the weights that it follows.

        Args:
            source: The float32 weights to follow, in the order of parameters().
        """
        torch._foreach_lerp_(self.masters, source, self.rate)
        self._publish()

    def _publish(self) -> None:
        for param, master in zip(self.module.parameters(), self.masters, strict=True):
            param.data.copy_(master)

    def state_dict(self) -> list[Tensor]:
        return [m.clone() for m in self.masters]

    def load_state_dict(self, state: list[Tensor]) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave: the float32 weights, in the order of parameters().
        """
        for master, value in zip(self.masters, state, strict=True):
            master.copy_(value)
        self._publish()


class ActorCritic(nn.Module):
    """Actor: feat -> action logits. Critic: feat -> two-hot value logits, steadied by a slow copy."""

    bins: Tensor

    def __init__(
        self,
        features: int,
        num_actions: int,
        options: AgentOptions,
        size: SizeOptions,
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        """Build the networks.

        Args:
            features: F.
            num_actions: A.
            options: Options of the learning rule.
            size: Widths of the networks.
            seed: Seed of the run; chooses the weights.
            dtype: Compute type of the slow critic.
            device: Where the slow critic and the scale of returns are.
        """
        super().__init__()
        self.options = options
        units = size.units
        self.actor = MLP(features, units, LAYERS, generator(seed, "init/actor"), num_actions, scale=0.01)
        self.critic = MLP(features, units, LAYERS, generator(seed, "init/critic"), options.bins, scale=0.0)
        self.slow = SlowCopy(self.critic.to(device), options.slow_rate, dtype)
        self.returns = ReturnScale(
            options.return_rate, options.return_limit, options.return_low, options.return_high, device
        )
        self.register_buffer("bins", symexp_bins(options.bins), persistent=False)

    def logits(self, feat: Tensor) -> Tensor:
        """Compute the actor's logits.

        Args:
            feat: Features, (..., F).

        Returns:
            Logits of the actions, (..., A), float32.
        """
        return self.actor(feat).float()

    def value(self, feat: Tensor) -> TwoHot:
        """Compute the critic's distribution of returns.

        Args:
            feat: Features, (..., F).

        Returns:
            The distribution, of shape (...).
        """
        return TwoHot(self.critic(feat), self.bins)

    @torch.no_grad()
    def slow_value(self, feat: Tensor) -> Tensor:
        """Compute the slow critic's expected return, without gradient.

        Args:
            feat: Features, (..., F).

        Returns:
            (...), float32.
        """
        return TwoHot(self.slow.module(feat), self.bins).mean

    @torch.no_grad()
    def sample(self, feat: Tensor, rng: torch.Generator) -> Tensor:
        """Draw actions from the policy.

        Args:
            feat: Features, (N, F).
            rng: Draws the actions; on the device of `feat`.

        Returns:
            Actions, (N,) long.
        """
        return self.draw(self.actor(feat), rng)

    @staticmethod
    def draw(logits: Tensor, rng: torch.Generator) -> Tensor:
        """Draw actions from logits.

        Args:
            logits: Logits of the actions, (N, A).
            rng: Draws the actions; on the device of `logits`.

        Returns:
            Actions, (N,) long.
        """
        uniform = torch.rand(len(logits), generator=rng, device=logits.device)
        return fused.sample(logits.unsqueeze(1), uniform.unsqueeze(1)).squeeze(1).long()

    def loss(
        self,
        imagined: Imagined,
        reward: Tensor,
        cont: Tensor,
        bonus: Tensor | None = None,
        regularise: Regularise | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor | None, Tensor]:
        """Compute the losses of actor and critic over imagined rollouts.

        The actor learns by REINFORCE on normalised advantages, the critic by cross-entropy to the returns and
        to the prediction of its slow copy.

        Args:
            imagined: Features (H+1, N, F) and actions (H+1, N).
            reward: Predicted rewards, (H+1, N).
            cont: Predicted discount times probability of going on, (H+1, N).
            bonus: What was added to the logits when the actions were drawn, (H, N, A); None where nothing
                was.
            regularise: Computes what stands in place of the entropy bonus; None: the entropy bonus stays.

        Returns:
            Losses by name, each (N,); lambda-returns (H, N); metrics, 0-d; KL(sg(pi_mix) || pi_wm)
            (H, N), None without a bonus; and the logits where the rollouts start, (N, A), with gradient.
        """
        feat, o = imagined.feat, self.options
        critic = self.value(feat[:-1])
        with torch.no_grad():
            value = torch.cat([critic.mean, self.value(feat[-1:]).mean])  # (H+1, N)
            weight = cont.cumprod(0)[:-1]  # (H, N): probability of being still alive
            returns = lambda_return(reward, 1.0 - cont, torch.zeros_like(cont), value, 1.0, o.lam)
            scale = self.returns.update(returns)
            advantage = (returns - value[:-1]) / scale
        # (A, H, N): over few classes, softmax along the innermost axis is several times slower
        logits = self.logits(feat[:-1]).movedim(-1, 0).contiguous()
        log_probs, kl = logits.log_softmax(0), None
        if bonus is not None:
            alone, log_probs = log_probs, (logits + bonus.movedim(-1, 0)).log_softmax(0)
            kl = (log_probs.detach().exp() * (log_probs.detach() - alone)).sum(0)
        log_prob = log_probs.gather(0, imagined.action[:-1].unsqueeze(0)).squeeze(0)
        entropy = -(log_probs.exp() * log_probs).sum(0)
        regular = None if regularise is None else regularise(feat[:-1], log_probs)
        spread, more = (o.entropy * entropy, {}) if regular is None else regular
        actor = -weight * (log_prob * advantage + spread)
        critic_loss = weight * self._critic_loss(critic, returns, self.slow_value(feat[:-1]))
        metrics = {
            "policy/entropy": entropy.mean(),
            "policy/prob_max": log_probs.amax(0).exp().mean(),
            "value/imagined": value.mean(),
            "value/return_scale": scale,
            "value/advantage_abs": advantage.abs().mean(),
            **more,
        }
        return {"actor": actor.mean(0), "critic": critic_loss.mean(0)}, returns, metrics, kl, logits[:, 0].T

    def replay_loss(
        self, feat: Tensor, batch: Batch, bootstrap: Tensor, trust: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the critic's loss on replayed rewards; its gradient also shapes the features.

        Args:
            feat: Posterior features, (B, T, F), with gradient.
            batch: The replayed rows.
            bootstrap: The imagined return from each posterior, (B, T).
            trust: Further weights of the rows, (B, T); None: all rows count alike.

        Returns:
            The loss, (B, T-1), and metrics, 0-d.
        """
        feat = feat[:, :-1]
        critic = self.value(feat)  # (B, T-1)
        with torch.no_grad():
            returns = lambda_return(
                batch.reward.T,
                batch.is_terminal.T.float(),
                batch.is_last.T.float(),
                bootstrap.T,
                1.0 - 1.0 / self.options.discount_horizon,
                self.options.lam,
            ).T  # (B, T-1)
            error = returns - critic.mean
        weight = (~batch.is_last[:, :-1]).float()
        if trust is not None:
            weight = weight * trust[:, :-1]
        metrics = {
            "value/temporal_difference": error.abs().mean(),
            "value/explained_variance": 1.0 - error.var() / returns.var().clamp(min=1e-8),
        }
        return weight * self._critic_loss(critic, returns, self.slow_value(feat)), metrics

    def _critic_loss(self, critic: TwoHot, returns: Tensor, slow_value: Tensor) -> Tensor:
        return critic.loss(returns, slow_value, weights=(1.0, self.options.slow_reg))
