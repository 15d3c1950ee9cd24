"""DreamerV3: infer a belief from observations, and learn from replayed sequences."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from lore.dreamer.actor_critic import ActorCritic
from lore.dreamer.ensembles import CriticEnsemble, DisagreementEnsemble
from lore.dreamer.rssm import Core
from lore.dreamer.world_model import WorldModel
from lore.nn.optim import LaProp
from lore.options import Agent, Size
from lore.rng import Streams
from lore.types import Batch, Belief, Carry, Latent, ObsSpec

REGION = "lore: "  # how a profile tells the regions of a gradient step from operations


def region(name: str) -> AbstractContextManager[object]:
    return torch.profiler.record_function(REGION + name)


class DreamerV3Agent:
    """Hafner et al. 2023 (arXiv 2301.04104) for discrete actions, as in the current official code.

    dtype: compute type of the networks, float32 or bfloat16; weights, losses and distributions are float32.
    """

    def __init__(
        self,
        spec: dict[str, ObsSpec],
        num_actions: int,
        options: Agent,
        size: Size,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
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

    def initial(self, n: int) -> Carry:
        """The state before the first observation of n environments."""
        action = torch.zeros(n, dtype=torch.long, device=self.device)
        return Carry(self.world_model.rssm.initial(n, self.device), action)

    @torch.no_grad()
    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """obs key -> (N, *shape), is_first (N,): the posterior and what the policy makes of it."""
        rssm = self.world_model.rssm
        tokens = self.world_model.encode(obs)
        self._core = self._core or rssm.prepare()
        latent = rssm.obs_step(carry.latent, carry.prev_action, tokens, is_first, rng, self._core)
        feat = rssm.feat(latent)
        return latent, Belief(self.actor_critic.logits(feat), feat)

    @torch.no_grad()
    def doubt(self, belief: Belief) -> dict[str, Tensor]:
        """What the ensembles that are switched on say of a belief: name -> (N,)."""
        out = {}
        if self.critic_ensemble:
            out["value_var"] = self.critic_ensemble.variance(belief.feat)
        if self.disagreement_ensemble:
            out["disagreement"] = self.disagreement_ensemble.disagreement(
                belief.feat, belief.logits.softmax(-1)
            )
        return out

    def update(self, batch: Batch) -> tuple[dict[str, Tensor], Latent]:
        """One gradient step: metrics as 0-d tensors, and the fresh latents (B, T) for the replay."""
        losses, latent, metrics = self.losses(batch)
        with region("backward"):
            total = torch.stack([self.options.scales[k] * v.mean() for k, v in losses.items()]).sum()
            total.backward()
        with region("optimizer"):
            metrics.update(self.optimizer.step())
            self.actor_critic.slow.update(self._critic_masters)
            self._core = None
        metrics.update({f"loss/{k}": v.mean() for k, v in losses.items()})
        return {k: v.detach() for k, v in metrics.items()}, latent

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Latent, dict[str, Tensor]]:
        """Every loss by its name in options.scales, before reduction; latents (B, T); metrics.

        Raises KeyError (in update) for a loss without a scale.
        """
        B, T = batch.is_first.shape
        with region("world model"):
            losses, observed = self.world_model.loss(batch, self.rng["posterior"])
        with region("imagination"):
            start = observed.feat.detach().flatten(0, 1)  # (B*T, F): every posterior is a start
            actions = self.rng["imagined_action"]
            imagined = self.world_model.rssm.imagine(
                start,
                lambda feat: self.actor_critic.sample(feat, actions),
                self.options.horizon,
                self.rng["imagination"],
            )
            reward, cont = self.world_model.predict(imagined.feat)
        with region("behaviour"):
            behaviour, returns, metrics = self.actor_critic.loss(imagined, reward, cont)
            losses.update({k: v.view(B, T) for k, v in behaviour.items()})
            bootstrap = returns[0].view(B, T)
            losses["replay_critic"], replay_metrics = self.actor_critic.replay_loss(
                observed.feat, batch, bootstrap
            )
            metrics.update(replay_metrics)
        with region("ensembles"):
            if self.critic_ensemble:
                losses["critic_ensemble"] = self.critic_ensemble.loss(observed.feat, bootstrap, batch.index)
            if self.disagreement_ensemble:
                losses["disagreement_ensemble"] = self.disagreement_ensemble.loss(
                    observed.feat, observed.probs, batch
                )
        return losses, observed.latent, metrics

    def state_dict(self) -> dict:
        return {
            "optimizer": self.optimizer.state_dict(),
            "slow_critic": self.actor_critic.slow.state_dict(),
            "returns": self.actor_critic.returns.state_dict(),
            "rng": self.rng.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError where the checkpoint belongs to an agent of another size."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._core = None
        self.actor_critic.slow.load_state_dict(state["slow_critic"])
        self.actor_critic.returns.load_state_dict(state["returns"])
        self.rng.load_state_dict(state["rng"])
