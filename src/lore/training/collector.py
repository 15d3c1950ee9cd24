"""Experience: the policy acts in the training environments, and the replay and the meters take it in.

Letters: N environments.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lore.base.types import FLAGS, Carry, Episode, Latent
from lore.dreamer.replay import ReplayBuffer
from lore.envs import VectorEnv
from lore.envs.vector import Obs
from lore.metrics.aggregate import MetricsAggregator
from lore.nn.distributions import one_hot
from lore.training.acting import Decision, GuidedPolicy
from lore.training.advice_meter import AdviceMeter
from lore.training.families import StepMeter
from lore.training.trial import Trial


class Collector:
    """Acts in the training environments, and remembers what happened.

    Its state is what the policy carries from step to step.
    """

    def __init__(
        self,
        envs: VectorEnv,
        policy: GuidedPolicy,
        replay: ReplayBuffer | None,
        metrics: MetricsAggregator,
        skills: StepMeter,
        meter: AdviceMeter | None,
        trial: Trial,
        adviser: str,
        follow_end: int | None,
    ):
        """Start an episode in every environment.

        Args:
            envs: The training environments.
            policy: Chooses the actions.
            replay: Takes a row a step; None where nothing learns.
            metrics: Takes the shares of the actions.
            skills: Watches the environments from outside.
            meter: Measures what advice did; None without advice.
            trial: Says in which episodes, and at which of their steps, advice may act.
            adviser: Who advises, for the records of episodes; "none" without advice.
            follow_end: The environment step at which a followed adviser is left: an episode that begins from
                then on has none. None: it never is.
        """
        self.envs, self.policy, self.replay, self.metrics = envs, policy, replay, metrics
        self.skills, self.meter, self.follow_end = skills, meter, follow_end
        self.trial, self.adviser = trial, adviser
        self.carry = policy.agent.initial(envs.num_envs)
        envs.reset()

    def step(self) -> tuple[list[Episode], list[str]]:
        """Step every environment once.

        Returns:
            The episodes that ended with the step, and what the trial has to say of them.
        """
        envs, obs = self.envs, self.envs.observation
        self._begin_episodes(obs)
        acts = [not over and self.trial.acts(i) for i, over in enumerate(obs["is_last"].tolist())]
        carry, decision = self.policy(
            self.carry, obs, envs.states() if envs.remember else (), envs.transitions, acts
        )
        if self.replay is not None:
            self.replay.add(self._replay_row(obs, decision), carry.latent)
        if self.meter is not None:
            self.meter.add(decision, obs["is_last"].tolist())
        taken = one_hot(decision.action, envs.num_actions, torch.float32).mean(0)
        self.metrics.add({"policy/action_histogram": taken})
        self.carry = carry
        self.skills.before(obs["is_first"].tolist())
        after = envs.step(decision.action.cpu().numpy())
        self.skills.after((~obs["is_last"]).tolist(), after["is_last"].tolist())
        return self._end_steps(obs["is_last"].tolist())

    def _begin_episodes(self, obs: Obs) -> None:
        """Let the trial decide on the episodes that begin; from `follow_end` on they have no adviser."""
        left = self.follow_end is not None and self.envs.transitions >= self.follow_end
        for i, begins in enumerate(obs["is_first"].tolist()):
            if begins:
                advised = self.trial.begin(i) and not left
                self.envs.advisers[i] = self.adviser if advised else "none"

    def _end_steps(self, was_over: list[bool]) -> tuple[list[Episode], list[str]]:
        """Tell the trial of the steps that were taken, and of the episodes that ended with them."""
        for i, over in enumerate(was_over):
            if not over:
                self.trial.step(i)
        episodes, said = [], []
        for episode in self.envs.pop_episodes():
            handed = self.trial.handed_over(episode.env)
            if handed is not None and handed < episode.length:  # else it ended before advice could act
                episode = replace(episode, handed_over=handed)
            episodes.append(episode)
            said += self.trial.end(episode.env, episode.return_, episode.success)
        return episodes, said

    def _replay_row(self, obs: Obs, decision: Decision) -> dict[str, torch.Tensor]:
        """What the replay keeps of a step besides the latent: column -> (N, ...)."""
        row = {f"obs/{k}": torch.from_numpy(obs[k]) for k in self.envs.obs_spec}
        row |= {k: torch.from_numpy(obs[k]) for k in (*FLAGS, "reward")}
        row |= {"success": torch.from_numpy(self.envs.won()), "action": decision.action}
        if decision.mixed is not None and decision.prior is not None:
            prior, mixed = decision.prior, decision.mixed
            row |= {"prior": prior.logits, "mask": prior.mask}
            row |= {"confidence": prior.confidence, "source": prior.source}
            row |= {"beta": mixed.beta, "temperature": mixed.temperature}
        return row

    def state_dict(self) -> dict[str, Any]:
        """Return tensors (N, ...); the gate's latch and the critic's value are None without advice."""
        return {
            "deter": self.carry.latent.deter,
            "stoch": self.carry.latent.stoch,
            "prev_action": self.carry.prev_action,
            "latched": self.carry.latched,
            "value": self.carry.value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, on the agent's device.

        Args:
            state: What `state_dict` gave, (N, ...) tensors on any device.
        """
        device = self.policy.agent.device
        deter, stoch, action = (state[name].to(device) for name in ("deter", "stoch", "prev_action"))
        latched, value = (None if state[k] is None else state[k].to(device) for k in ("latched", "value"))
        self.carry = Carry(Latent(deter, stoch), action, latched, value)
