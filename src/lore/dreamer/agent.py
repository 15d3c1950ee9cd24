"""DreamerV3: infer a belief from observations, and learn from replayed sequences."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lore.base.rng import Streams
from lore.base.types import Batch, Belief, Carry, Latent, ObsSpec
from lore.config.options import AgentOptions, SizeOptions
from lore.dreamer.actor_critic import ActorCritic
from lore.dreamer.ensembles import CriticEnsemble, DisagreementEnsemble
from lore.dreamer.guide import Guide, ImaginedPolicy
from lore.dreamer.rssm import Core
from lore.dreamer.world_model import WorldModel
from lore.nn.optim import LaProp

REGION = "lore: "  # how a profile tells the regions of a gradient step from operations


def region(name: str) -> AbstractContextManager[object]:
    """Mark a part of a gradient step, so that a profile shows its time.

    Args:
        name: Name of the part.

    Returns:
        A context manager; what runs within it belongs to the part.
    """
    return torch.profiler.record_function(REGION + name)


class DreamerV3Agent:
    """Hafner et al. 2023 (arXiv 2301.04104) for discrete actions, as in the current official code.

    Attributes:
        actor_learns: May be assigned: False holds the actor still.
    """

    actor_learns = True

    def __init__(
        self,
        spec: dict[str, ObsSpec],
        num_actions: int,
        options: AgentOptions,
        size: SizeOptions,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        heads: Mapping[str, Any] | None = None,
        guide: Guide | None = None,
    ):
        """
        Args:
            spec: Observation key -> what it is.
            num_actions: A.
            options: Options of the learning rule.
            size: Widths of the networks.
            seed: Seed of the run; chooses weights and random streams.
            device: Where all tensors are.
            dtype: Compute type of the networks; weights, losses and distributions are float32.
            heads: Name of a loss -> module that learns by it from detached features; it has
                `loss(feat (B, T, F), batch)`, of any shape.
            guide: What advice changes in learning; None without advice.
        """
        self.guide = guide
        self.options, self.device, self.num_actions = options, torch.device(device), num_actions
        self.rng = Streams(seed, device)
        self.world_model = WorldModel(spec, num_actions, options, size, seed).to(device)
        features = self.world_model.rssm.features
        self.actor_critic = ActorCritic(features, num_actions, options, size, seed, dtype, device).to(device)
        self.critic_ensemble = self.disagreement_ensemble = None
        modules = [self.world_model, self.actor_critic]
        if options.critic_ensemble:
            self.critic_ensemble = CriticEnsemble(options.critic_ensemble, features, options.bins, size, seed)
            modules.append(self.critic_ensemble.to(device))
        if options.disagreement_ensemble:
            self.disagreement_ensemble = DisagreementEnsemble(
                options.disagreement_ensemble, features, num_actions, size, seed
            )
            modules.append(self.disagreement_ensemble.to(device))
        self.heads = {name: head.to(device) for name, head in (heads or {}).items()}
        modules += self.heads.values()
        self.optimizer = LaProp(
            [p for m in modules for p in m.parameters()],
            options.lr,
            dtype,
            options.warmup,
            options.agc,
            options.beta1,
            options.beta2,
            options.opt_eps,
        )
        self._core: Core | None = None  # for acting, until the weights change
        masters = dict(zip(map(id, self.optimizer.params), self.optimizer.masters(), strict=True))
        self._critic_masters = [masters[id(p)] for p in self.actor_critic.critic.parameters()]

    @property
    def uncertainty_gate(self) -> Any:
        """The gate of an advised agent, whose attributes may be assigned while it runs; else None."""
        return None if self.guide is None else self.guide.gate

    def initial(self, n: int) -> Carry:
        """Return the carry before the first observation.

        Args:
            n: N, the number of environments.
        """
        action = torch.zeros(n, dtype=torch.long, device=self.device)
        return Carry(self.world_model.rssm.initial(n, self.device), action)

    @torch.no_grad()
    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """Take in an observation of N environments.

        Args:
            carry: From the step before.
            obs: key -> (N, *shape).
            is_first: Where an episode begins, (N,) bool.
            rng: Draws the latents.

        Returns:
            The posterior latents (N), and what the policy makes of them.
        """
        rssm = self.world_model.rssm
        tokens = self.world_model.encode(obs)
        self._core = self._core or rssm.prepare()
        latent = rssm.obs_step(carry.latent, carry.prev_action, tokens, is_first, rng, self._core)
        feat = rssm.feat(latent)
        return latent, Belief(self.actor_critic.logits(feat), feat)

    @torch.no_grad()
    def doubt(self, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Ask the ensembles how sure the agent can be.

        Args:
            feat: (N, F).
            logits: The actor's, (N, A).

        Returns:
            name -> (N,), float32: value_var and disagreement, as far as there are the ensembles.
        """
        out = {}
        if self.critic_ensemble:
            out["value_var"] = self.critic_ensemble.variance(feat)
        if self.disagreement_ensemble:
            out["disagreement"] = self.disagreement_ensemble.disagreement(feat, logits.softmax(-1))
        return out

    @torch.no_grad()
    def value(self, feat: Tensor) -> Tensor:
        """Compute the critic's expected return.

        Args:
            feat: Features, (N, F).

        Returns:
            (N,), float32.
        """
        return self.actor_critic.value(feat).mean

    @torch.no_grad()
    def lookahead(self, feat: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Imagine one step by an action, and compare what it promises with the value of the state.

        Args:
            feat: Features, (N, F).
            action: (N,) long.

        Returns:
            Predicted reward plus the discounted value of the state that follows, (N,), and the value of the
            state itself, (N,).
        """
        rssm = self.world_model.rssm
        uniform = torch.rand(len(feat), rssm.stoch, generator=self.rng["lookahead"], device=feat.device)
        after = rssm.prior_step(feat, action, uniform, rssm.prepare())
        reward, cont = self.world_model.predict(after)
        return reward + cont * self.value(after), self.value(feat)

    @torch.no_grad()
    def outcomes(self, feat: Tensor, rng: torch.Generator) -> Tensor:
        """Imagine one step by every action, and ask each critic of the ensemble what it promises.

        Args:
            feat: Features, (N, F).
            rng: Draws the latents; on the agent's device.

        Returns:
            Predicted reward plus the discounted value of the state that follows, in return scales, (K, N, A).
        """
        assert self.critic_ensemble is not None
        rssm, N, A = self.world_model.rssm, len(feat), self.num_actions
        uniform = torch.rand(N, rssm.stoch, generator=rng, device=self.device)  # the same for every action
        every = torch.arange(A, device=self.device).repeat(N)
        self._core = self._core or rssm.prepare()
        after = rssm.prior_step(
            feat.repeat_interleave(A, 0), every, uniform.repeat_interleave(A, 0), self._core
        )
        reward, cont = self.world_model.predict(after)
        promised = reward + cont * self.critic_ensemble.values(after)  # (K, N * A)
        return promised.unflatten(-1, (N, A)) / self.actor_critic.returns.scale

    def update(self, batch: Batch, report: bool = False) -> tuple[dict[str, Tensor], Latent]:
        """Take one gradient step.

        Args:
            batch: Sequences from replay.
            report: Whether the world model's predictions are measured too, the metrics world/.

        Returns:
            Metrics as 0-d tensors, and the fresh latents (B, T) for the replay.

        Raises:
            KeyError: A loss has no scale in options.scales.
        """
        losses, latent, metrics = self.losses(batch, report)
        scales = self.options.scales
        if not self.actor_learns:
            scales = {**scales, "actor": 0.0, "kl": 0.0, "clone": 0.0}
        with region("backward"):
            total = torch.stack([scales[k] * v.mean() for k, v in losses.items()]).sum()
            total.backward()
        with region("optimizer"):
            metrics.update(self.optimizer.step())
            self.actor_critic.slow.update(self._critic_masters)
            self._core = None
        metrics.update({f"loss/{k}": v.mean() for k, v in losses.items()})
        return {k: v.detach() for k, v in metrics.items()}, latent

    def losses(
        self, batch: Batch, report: bool = False
    ) -> tuple[dict[str, Tensor], Latent, dict[str, Tensor]]:
        """Compute every loss, before scale and mean.

        Args:
            batch: Sequences from replay.
            report: Whether the world model's predictions are measured too, the metrics world/.

        Returns:
            Name in options.scales -> loss, of any shape; latents (B, T); metrics.
        """
        B, T = batch.is_first.shape
        with region("world model"):
            losses, observed, metrics = self.world_model.loss(batch, self.rng["posterior"], report)
        feat = observed.feat.detach()  # (B, T, F)
        with region("imagination"):
            policy = ImaginedPolicy(self.actor_critic, self.guide, self.doubt, self.rng["imagined_action"])
            start = feat.flatten(0, 1)  # (B*T, F): every posterior is a start
            imagined = self.world_model.rssm.imagine(
                start, policy, self.options.horizon, self.rng["imagination"]
            )
            reward, cont = self.world_model.predict(imagined.feat)
        with region("behaviour"):
            regularise = partial(self.guide.regularise, lookahead=self.lookahead) if self.guide else None
            behaviour, returns, more, kl, logits = self.actor_critic.loss(
                imagined, reward, cont, policy.bonus(), regularise
            )
            losses.update({k: v.view(B, T) for k, v in behaviour.items()})
            metrics.update(more)
            trust = self._guided(feat, logits.view(B, T, -1), batch, kl, losses, metrics)
            bootstrap = returns[0].view(B, T)
            losses["replay_critic"], more = self.actor_critic.replay_loss(
                observed.feat, batch, bootstrap, trust
            )
            metrics.update(more)
        with region("ensembles"):
            if self.critic_ensemble:
                losses["critic_ensemble"] = self.critic_ensemble.loss(feat, bootstrap, batch.index)
            if self.disagreement_ensemble:
                losses["disagreement_ensemble"] = self.disagreement_ensemble.loss(feat, observed.probs, batch)
            losses.update({name: head.loss(feat, batch) for name, head in self.heads.items()})
        return losses, observed.latent, metrics

    def _guided(
        self,
        feat: Tensor,
        logits: Tensor,
        batch: Batch,
        kl: Tensor | None,
        losses: dict[str, Tensor],
        metrics: dict[str, Tensor],
    ) -> Tensor | None:
        """Add the guide's part to losses and metrics; the rows' trust (B, T).

        feat: (B, T, F). logits: the actor's of these, (B, T, A), with gradient. kl: (H, B*T).
        """
        if self.guide is None:
            return None
        alone = logits.detach()
        self.guide.calibrate(feat[:, -1], alone[:, -1], self.doubt)  # few states, at each of many updates
        extra, more = self.guide.replay_loss(logits, batch, kl)
        losses.update(extra)
        metrics.update(more)
        return self.guide.value_weight(alone, batch)

    def state_dict(self) -> dict:
        return {
            "optimizer": self.optimizer.state_dict(),
            "slow_critic": self.actor_critic.slow.state_dict(),
            "returns": self.actor_critic.returns.state_dict(),
            "rng": self.rng.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave.

        Raises:
            ValueError: The checkpoint belongs to an agent of another size.
        """
        self.optimizer.load_state_dict(state["optimizer"])
        self._core = None
        self.actor_critic.slow.load_state_dict(state["slow_critic"])
        self.actor_critic.returns.load_state_dict(state["returns"])
        self.rng.load_state_dict(state["rng"])
