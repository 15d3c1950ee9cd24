"""From observation to action: infer, advise, gate, mix, sample; the same in training and evaluation.

Letters: N environments, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lore.base.types import Belief, Carry, GridState, Latent, ObsSpec, Prior
from lore.gate import Gate, Mixed, Opening, check_opening, vetoed
from lore.nn import fused
from lore.training.exploration_noise import ActionNoise


class Agent(Protocol):
    """What acting needs of an agent."""

    device: torch.device

    def initial(self, n: int) -> Carry:
        """Return the carry before the first step.

        Args:
            n: N, the number of environments.
        """

    def infer(
        self, carry: Carry, obs: dict[str, Tensor], is_first: Tensor, rng: torch.Generator
    ) -> tuple[Latent, Belief]:
        """Estimate the state of every environment, and say what the agent would do there.

        Args:
            carry: What the step before left, of N environments.
            obs: Observation key -> (N, *shape), on the agent's device.
            is_first: (N,) bool, where an episode begins: such a row starts from an empty state.
            rng: Draws the latents; on the agent's device.

        Returns:
            The latent of N environments, and the agent's belief: logits (N, A) and features (N, F).
        """

    def doubt(self, feat: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Ask the ensembles how unsure the agent is.

        Args:
            feat: Features, (N, F).
            logits: Logits of the policy in the same states, (N, A).

        Returns:
            Name (value_var, disagreement) -> (N,) float32, at least 0; empty without ensembles.
        """

    def value(self, feat: Tensor) -> Tensor:
        """Estimate the return with the critic.

        Args:
            feat: Features, (N, F).

        Returns:
            (N,) float32, in units of reward.
        """

    def outcomes(self, feat: Tensor, rng: torch.Generator) -> Tensor:
        """Imagine one step by every action; only a gate with a veto asks.

        Args:
            feat: Features, (N, F).
            rng: Draws what is imagined; on the agent's device.

        Returns:
            What each of K critics expects of each action, in return scales, (K, N, A).
        """


class Adviser(Protocol):
    """What acting needs of an adviser; LLMController is one."""

    def advise(
        self,
        states: Sequence[GridState],
        env_step: int,
        td_error: Sequence[float] | None = None,
        latched: Sequence[bool] | None = None,
        learned: Sequence[Sequence[float] | None] | None = None,
        over: Sequence[bool] | None = None,
        may_ask: Sequence[bool] | None = None,
    ) -> Prior:
        """Advise on one step of N environments.

        Args:
            states: What the agent knows of its worlds, N of them.
            env_step: Environment steps of the run so far.
            td_error: (N) TD errors of the critic for the steps that led here, NaN where an episode begins;
                None where they are not known.
            latched: (N), where the gate allows asking; None: everywhere.
            learned: For each environment the distilled adviser's distribution, (A,), or None where the
                network is not confident; None without a distilled adviser.
            over: (N), where an episode has ended, so that no action counts; None: nowhere.
            may_ask: (N), where advice may act, so that an ask is worth its price; None: everywhere.
        """


class Distilled(Protocol):
    """What acting needs of the distilled adviser."""

    def confident(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Give distilled advice, and say where it counts.

        Args:
            feat: Features, (N, F).

        Returns:
            Weights of the actions, (N, A), and where the network is confident of them, (N,) bool.
        """


@dataclass
class Guidance:
    """How a policy is advised.

    Attributes:
        gate: Says how strongly advice acts.
        adviser: Gives it.
        distilled: The adviser as a network, asked where it is confident; None without.
        discount: Discount of the critic's returns, for TD errors.
        rng: Draws the gate's dropout; None where advice is never dropped, as in an evaluation.
    """

    gate: Gate
    adviser: Adviser
    distilled: Distilled | None = None
    discount: float = 1.0
    rng: torch.Generator | None = None


@dataclass
class Decision:
    """What a policy does in N environments.

    Attributes:
        action: (N,) long.
        logits: The policy, (N, A), before exploration noise.
        belief: What the agent makes of the step.
        prior: What the adviser says; None without an adviser, as the next two.
        opening: How far the gate is open.
        mixed: The policy that came of both; None where the adviser says nothing.
        acts: (N), where advice may act; None: everywhere.
        vetoed: (N,) bool, where the critics' veto kept advice from acting; None without a veto.
    """

    action: Tensor
    logits: Tensor
    belief: Belief
    prior: Prior | None = None
    opening: Opening | None = None
    mixed: Mixed | None = None
    acts: Sequence[bool] | None = None
    vetoed: Tensor | None = None


class GuidedPolicy:
    """Chooses actions: policy(carry, obs) -> carry, decision. The same in training and evaluation."""

    def __init__(
        self,
        agent: Agent,
        spec: dict[str, ObsSpec],
        rng: torch.Generator,
        greedy: bool = False,
        advice: Guidance | None = None,
        noise: ActionNoise | None = None,
    ):
        """
        Args:
            agent: Says what it would do alone.
            spec: Observation key -> what it is; other keys are not shown to the agent.
            rng: Draws latents and actions; on the agent's device.
            greedy: Whether the likeliest action is taken instead of a sample.
            advice: How the policy is advised; None without advice.
            noise: Changes the logits before an action is drawn; None in an evaluation.
        """
        self.agent, self.spec, self.rng, self.greedy = agent, spec, rng, greedy
        self.advice, self.noise = advice, noise

    def __call__(
        self,
        carry: Carry,
        obs: dict[str, np.ndarray],
        states: Sequence[GridState] = (),
        env_step: int = 0,
        acts: Sequence[bool] | None = None,
    ) -> tuple[Carry, Decision]:
        """Take one step in N environments.

        Args:
            carry: What the step before gave; `agent.initial(N)` before the first.
            obs: key -> (N, *shape), and is_first (N,): such a row starts from an empty state. With reward
                and is_terminal (N,) the adviser hears of TD errors; with is_last (N,) nothing is decided
                where an episode has ended.
            states: What the agent knows of its worlds, N of them, for adviser and noise.
            env_step: Environment steps of the run so far.
            acts: (N), where advice may act; None: everywhere. Elsewhere it is heard, and moves nothing.

        Returns:
            The carry for the next step, and what was decided.
        """
        device, heard = self.agent.device, None
        if self.advice is not None and self.advice.gate.hints:
            heard = self._hear(self.advice.adviser, obs, states, env_step, acts)
        seen = {k: torch.from_numpy(obs[k]).to(device) for k in self.spec}
        is_first = torch.from_numpy(obs["is_first"]).to(device)
        latent, belief = self.agent.infer(carry, seen, is_first, self.rng)
        after, decision = Carry(latent, carry.prev_action), Decision(carry.prev_action, belief.logits, belief)
        if self.advice is not None:
            self._guide(self.advice, carry, after, decision, obs, states, env_step, acts, heard)
        logits = decision.logits if self.noise is None else self.noise(decision.logits, states, env_step)
        decision.action = after.prev_action = self._sample(logits)
        return after, decision

    @staticmethod
    def _hear(
        adviser: Adviser,
        obs: dict[str, np.ndarray],
        states: Sequence[GridState],
        env_step: int,
        acts: Sequence[bool] | None,
    ) -> Prior:
        """Ask before the agent looks, and put the advised distribution into its observation (env.hint)."""
        over = obs["is_last"].tolist() if "is_last" in obs else None
        prior = adviser.advise(states, env_step, over=over, may_ask=acts)
        shown = prior.source.unsqueeze(-1) > 0
        if acts is not None:
            shown = shown & torch.tensor(acts).unsqueeze(-1)
        obs["hint"] = torch.where(shown, prior.logits.softmax(-1), 0.0).numpy()
        return prior

    def _guide(
        self,
        advice: Guidance,
        carry: Carry,
        after: Carry,
        decision: Decision,
        obs: dict[str, np.ndarray],
        states: Sequence[GridState],
        env_step: int,
        acts: Sequence[bool] | None,
        heard: Prior | None,
    ) -> None:
        """Fill in what the adviser says and how far the gate lets it act; `after` is carried on."""
        gate, belief, agent = advice.gate, decision.belief, self.agent
        doubt = agent.doubt(belief.feat, belief.logits) if gate.members else {}
        latched = (
            torch.zeros_like(decision.action, dtype=torch.bool) if carry.latched is None else carry.latched
        )
        opened = gate.open(belief.logits, doubt, latched, env_step)
        opening = check_opening(opened, len(belief.logits), gate.options.name, gate.follows)
        after.latched, after.value = opening.latched, agent.value(belief.feat)
        prior = heard or advice.adviser.advise(
            states,
            env_step,
            _td_error(obs, carry.value, after.value, advice.discount),
            opening.latched.tolist(),
            _learned(advice.distilled, belief.feat),
            obs["is_last"].tolist() if "is_last" in obs else None,
            acts,
        )
        decision.prior, decision.opening, decision.acts = prior, opening, acts
        if bool((prior.source > 0).any()):
            beta = _drop(opening.beta, gate.dropout, advice.rng)
            if acts is not None:
                beta = torch.where(torch.tensor(acts, device=beta.device), beta, 0.0)
            if gate.options.veto and bool((beta > 0).any()):
                advised = prior.logits.to(beta.device).argmax(-1)
                against = vetoed(agent.outcomes(belief.feat, self.rng), advised)
                decision.vetoed = against & (beta > 0)
                beta = torch.where(against, 0.0, beta)
            decision.mixed = gate.mix(belief.logits, prior, beta)
            decision.logits = decision.mixed.logits

    def _sample(self, logits: Tensor) -> Tensor:
        """(N, A) -> (N,) long."""
        if self.greedy:
            return logits.argmax(-1)
        uniform = torch.rand(len(logits), generator=self.rng, device=logits.device)
        return fused.sample(logits.unsqueeze(1), uniform.unsqueeze(1)).squeeze(1).long()


def _td_error(
    obs: dict[str, np.ndarray], before: Tensor | None, now: Tensor, discount: float
) -> list[float] | None:
    """Compute r + discount * V(s') - V(s) of the step that led here, (N); NaN where an episode begins."""
    if before is None or "reward" not in obs:
        return None
    ahead = np.where(obs["is_terminal"], 0.0, now.cpu().numpy())
    error = obs["reward"] + discount * ahead - before.cpu().numpy()
    return np.where(obs["is_first"], np.nan, error).tolist()


def _learned(distilled: Distilled | None, feat: Tensor) -> list[list[float] | None] | None:
    if distilled is None:
        return None
    weights, sure = distilled.confident(feat)
    return [row if ok else None for row, ok in zip(weights.tolist(), sure.tolist(), strict=True)]


def _drop(beta: Tensor, share: float, rng: torch.Generator | None) -> Tensor:
    """Set a `share` of beta (N,) to 0."""
    if rng is None or not share:
        return beta
    return torch.where(torch.rand(len(beta), generator=rng, device=beta.device) < share, 0.0, beta)
