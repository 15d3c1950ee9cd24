"""From observation to action: infer, advise, gate, mix, sample; the same in training and evaluation.

Letters: N environments, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lore.base.types import Belief, Carry, GridState, ObsSpec, Prior
from lore.gate import Gate, Mixed, Opening, check_opening, vetoed
from lore.nn import fused
from lore.training.exploration_noise import ActionNoise
from lore.training.roles import Adviser, Agent, Distilled


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


@dataclass(frozen=True)
class Scene:
    """What one step shows of N environments, besides the carry: the arguments of GuidedPolicy.__call__."""

    obs: dict[str, np.ndarray]
    states: Sequence[GridState]
    env_step: int
    acts: Sequence[bool] | None

    def hear(
        self,
        adviser: Adviser,
        td_error: Sequence[float] | None = None,
        latched: Sequence[bool] | None = None,
        learned: Sequence[Sequence[float] | None] | None = None,
    ) -> Prior:
        """Let an adviser speak of the scene; for the arguments see Adviser.advise."""
        over = self.obs["is_last"].tolist() if "is_last" in self.obs else None
        return adviser.advise(self.states, self.env_step, td_error, latched, learned, over, self.acts)


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
        scene = Scene(obs, states, env_step, acts)
        if self.advice is not None and self.advice.gate.hints:
            heard = self._hint(self.advice.adviser, scene)
        seen = {k: torch.from_numpy(obs[k]).to(device) for k in self.spec}
        is_first = torch.from_numpy(obs["is_first"]).to(device)
        latent, belief = self.agent.infer(carry, seen, is_first, self.rng)
        after, decision = Carry(latent, carry.prev_action), Decision(carry.prev_action, belief.logits, belief)
        if self.advice is not None:
            self._guide(self.advice, scene, carry, after, decision, heard)
        logits = decision.logits if self.noise is None else self.noise(decision.logits, states, env_step)
        decision.action = after.prev_action = self._sample(logits)
        return after, decision

    @staticmethod
    def _hint(adviser: Adviser, scene: Scene) -> Prior:
        """Ask before the agent looks, and put the advised distribution into its observation (env.hint)."""
        prior = scene.hear(adviser)
        shown = prior.source.unsqueeze(-1) > 0
        if scene.acts is not None:
            shown = shown & torch.tensor(scene.acts).unsqueeze(-1)
        scene.obs["hint"] = torch.where(shown, prior.logits.softmax(-1), 0.0).numpy()
        return prior

    def _guide(
        self,
        advice: Guidance,
        scene: Scene,
        carry: Carry,
        after: Carry,
        decision: Decision,
        heard: Prior | None,
    ) -> None:
        """Fill in what the adviser says (or has said: `heard`) and how far the gate lets it act.

        after: Is carried on to the next step.
        """
        gate, belief, agent = advice.gate, decision.belief, self.agent
        doubt = agent.doubt(belief.feat, belief.logits) if gate.members else {}
        latched = (
            torch.zeros_like(decision.action, dtype=torch.bool) if carry.latched is None else carry.latched
        )
        opened = gate.open(belief.logits, doubt, latched, scene.env_step)
        opening = check_opening(opened, len(belief.logits), gate.options.name, gate.follows)
        after.latched, after.value = opening.latched, agent.value(belief.feat)
        prior = heard or scene.hear(
            advice.adviser,
            td_error=_td_error(scene.obs, carry.value, after.value, advice.discount),
            latched=opening.latched.tolist(),
            learned=_learned(advice.distilled, belief.feat),
        )
        decision.prior, decision.opening, decision.acts = prior, opening, scene.acts
        if bool((prior.source > 0).any()):
            beta = _drop(opening.beta, gate.dropout, advice.rng)
            if scene.acts is not None:
                beta = torch.where(torch.tensor(scene.acts, device=beta.device), beta, 0.0)
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
