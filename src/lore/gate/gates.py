"""The gates: how strongly advice acts where. A gate is a class with `open`; the rest it inherits.

Letters: N environments or states, A actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lore.base.types import Prior
from lore.config.options import GateOptions
from lore.gate.kl import KLControl
from lore.gate.mix import centred, mix
from lore.gate.opening import Opening
from lore.gate.temperature import build_temperature

CLIP = 2.0  # a term of u never counts as more than this times its frozen mean
FLOORS = {"value_var": 0.05**2}  # smallest norms: before a reward was seen all critics say 0, and agree


@dataclass
class Mixed:
    """The policy that advice was mixed into.

    Attributes:
        logits: l_mix, (N, A).
        beta: The beta that acted, (N,); 0 without advice.
        temperature: Of the advice, (N,).
    """

    logits: Tensor
    beta: Tensor
    temperature: Tensor


class Gate:
    """Base of all gates: mixes advice with the beta that `open` gives, held to the KL constraint.

    Attributes:
        members: Networks in each of the ensembles whose doubt it reads; 0: it reads none.
        reads: Which ensembles it reads; no other is built.
        beta_max: Largest beta; infinite where it is not known.
        dropout: Share of training steps acted without advice.
        follows: Whether advice alone acts, unmixed.
        hints: Whether advice is shown to the agent as an observation, before the agent infers its state.
    """

    members = 0
    reads: tuple[str, ...] = ("value_var", "disagreement")
    beta_max = math.inf
    dropout = 0.0
    follows = False
    hints = False

    def __init__(self, options: GateOptions, device: torch.device | str = "cpu"):
        """Take up the options.

        Args:
            options: The options of the group `gate`.
            device: Where the tensors are.
        """
        self.options, self.device = options, torch.device(device)
        self.kl = KLControl(options.kl, device)
        self._temperature = build_temperature(
            options.temperature, options.entropy_share, options.fixed_temperature
        )

    @property
    def delta_target(self) -> float:
        """What the KL is held to, in nats."""
        return self.kl.delta_target

    @delta_target.setter
    def delta_target(self, value: float) -> None:
        self.kl.delta_target = value

    @property
    def kl_lr(self) -> float:
        """Step of the multiplier lambda at an update."""
        return self.kl.kl_lr

    @kl_lr.setter
    def kl_lr(self, value: float) -> None:
        self.kl.kl_lr = value

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """Say how strongly advice acts in N states.

        Args:
            logits: l_wm, (N, A).
            doubt: What the agent's ensembles say, name -> (N,).
            latched: The latch one step ago, (N,) bool.
            env_step: Environment step of the run.
        """
        raise NotImplementedError

    def imagined_beta(self, logits: Tensor, doubt: dict[str, Tensor], env_step: int) -> Tensor:
        """Compute beta of imagined states: capped at beta_imagine_max, and without the latch.

        Args:
            logits: l_wm, (N, A).
            doubt: What the agent's ensembles say, name -> (N,).
            env_step: Environment step of the run.

        Returns:
            beta, (N,).
        """
        on = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return self.open(logits, doubt, on, env_step).beta.clamp(max=self.options.beta_imagine_max)

    def bonus(self, prior: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Turn advice into what is added to the policy's logits, before beta.

        Args:
            prior: l_llm, (N, A).
            mask: The actions that the adviser allows, (N, A) bool.
            logits: l_wm, (N, A).

        Returns:
            l~, (N, A), and its temperature, (N,).
        """
        level = centred(prior, mask)
        temperature = self._temperature(level, logits)
        return level / temperature.unsqueeze(-1), temperature

    def mix(self, logits: Tensor, prior: Prior, beta: Tensor) -> Mixed:
        """Mix advice into the policy.

        Args:
            logits: l_wm, (N, A).
            prior: The advice.
            beta: What `open` gave, (N,).

        Returns:
            l_mix and what acted; l_wm itself where there is no advice or beta is 0.
        """
        beta = torch.where(prior.source.to(logits.device) > 0, beta, 0.0)
        bonus, temperature = self.bonus(prior.logits.to(logits.device), prior.mask.to(logits.device), logits)
        if self.kl.mode == "project":
            beta = self.kl.project(logits, beta, bonus)
        return Mixed(mix(logits, beta, bonus), beta, temperature)

    def calibrate(self, logits: Tensor, doubt: dict[str, Tensor]) -> None:
        """Measure norms; called at each gradient step while `calibrating`.

        Args:
            logits: l_wm of states from replay, (N, A).
            doubt: What the agent's ensembles say of them, name -> (N,).
        """

    @property
    def calibrating(self) -> bool:
        """Whether `calibrate` still wants states."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what the gate has learned; the options are not in it."""
        return {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Args:
            state: What `state_dict` returned.
        """
        self.kl.load_state_dict(state["kl"])


class FixedGate(Gate):
    """The same beta everywhere; always ready to ask."""

    def __init__(self, options: GateOptions, device: torch.device | str = "cpu"):
        super().__init__(options, device)
        self.beta_max = options.beta

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """See Gate. The state plays no part, and new advice may always be asked for."""
        return Opening(torch.full_like(logits[:, 0], self.beta_max), torch.ones_like(latched), {})


class HintGate(Gate):
    """Advice is an observation (env.hint), and never mixed into the policy; always ready to ask."""

    hints = True
    beta_max = 0.0

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """See Gate. beta is 0, and new advice may always be asked for."""
        return Opening(torch.zeros_like(logits[:, 0]), torch.ones_like(latched), {})


class FollowGate(Gate):
    """Advice alone is followed, for the first `follow_steps` environment steps; then there is none."""

    follows = True

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """See Gate. beta is infinite while advice is followed, then 0."""
        end = self.options.follow_steps
        on = end is None or env_step < end
        beta = torch.full_like(logits[:, 0], math.inf if on else 0.0)
        return Opening(beta, torch.full_like(latched, on), {})

    def mix(self, logits: Tensor, prior: Prior, beta: Tensor) -> Mixed:
        """See Gate. Advice replaces the policy where there is advice and beta is above 0."""
        beta = torch.where(prior.source.to(logits.device) > 0, beta, 0.0)
        followed = torch.where(beta.unsqueeze(-1) > 0, prior.logits.to(logits.device), logits)
        return Mixed(followed, beta, torch.ones_like(beta))


class UncertaintyGate(Gate):
    """beta(s) = beta_max * sigmoid(kappa * (u(s) - tau)) * ramp(env_step) * (1 if latched, else off_scale).

    u(s) = w_H * H[pi_wm(.|s)] / log A + w_V * Var[V(s)] / norm_V + w_D * Disagreement(s) / norm_D. Each norm
    is the mean of its term over the first norm_updates gradient steps, then frozen: a term divided by a
    running mean of itself averages 1 for ever, and the gate could never close. norm_V is at least (0.05)^2: a
    spread of the critics below 5 % of the smallest return scale is no doubt, even where no reward came in
    time for the mean. Quotients are clipped at CLIP, and 1 until there is a mean. The latch goes on above
    tau_high and off below tau_low.

    Every attribute may be assigned on a live gate (a term whose weight is 0 at the start has no ensemble, and
    stays out): weights (entropy, value_var, disagreement), beta_max,
    kappa, tau, tau_high, tau_low, off_scale, warmup_steps, dropout, delta_target, kl_lr.
    """

    def __init__(self, options: GateOptions, device: torch.device | str = "cpu"):
        super().__init__(options, device)
        self.members = options.members
        self.weights = dict(options.weights)
        self.reads = tuple(name for name in ("value_var", "disagreement") if self.weights[name])
        self.beta_max, self.kappa, self.tau = options.beta_max, options.kappa, options.tau
        self.tau_high, self.tau_low, self.off_scale = options.tau_high, options.tau_low, options.off_scale
        self.warmup_steps, self.dropout = options.warmup_steps, options.dropout
        self.norm_updates = options.norm_updates
        self.norms: dict[str, Tensor] = {}  # name -> mean, 0-d
        self.calibrated = 0  # gradient steps that the norms are means of

    def terms(self, logits: Tensor, doubt: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the uncertainty u and its terms.

        Args:
            logits: l_wm, (N, A).
            doubt: value_var and disagreement, (N,) each, as far as the agent has the ensembles.

        Returns:
            name -> (N,): u, and its terms before their weights: entropy in [0, 1], the others in [0, CLIP].
        """
        log_probs = logits.log_softmax(-1)
        out = {"entropy": -(log_probs.exp() * log_probs).sum(-1) / math.log(logits.shape[-1])}
        for name, value in doubt.items():
            out[name] = self._share(name, value)
        u = sum((self.weights[name] * value for name, value in out.items()), torch.zeros_like(logits[:, 0]))
        return {"u": u, **out}

    def _share(self, name: str, value: Tensor) -> Tensor:
        """Divide a term (N,) by its norm, clipped to [0, CLIP]; 1 without a norm and where not finite."""
        if name not in self.norms:
            return torch.ones_like(value)
        norm = self.norms[name].clamp(min=FLOORS.get(name, 0.0))
        return (value / norm).nan_to_num(1.0).clamp(0.0, CLIP)

    def open(self, logits: Tensor, doubt: dict[str, Tensor], latched: Tensor, env_step: int) -> Opening:
        """See Gate. Sets the latch, and multiplies beta by off_scale where the latch is off."""
        terms = self.terms(logits, doubt)
        u = terms["u"]
        latched = (u > self.tau_high) | (latched & (u >= self.tau_low))
        beta = self.openness(u, env_step) * torch.where(latched, 1.0, self.off_scale)
        return Opening(beta, latched, terms)

    def imagined_beta(self, logits: Tensor, doubt: dict[str, Tensor], env_step: int) -> Tensor:
        """See Gate."""
        u = self.terms(logits, doubt)["u"]
        return self.openness(u, env_step).clamp(max=self.options.beta_imagine_max)

    def openness(self, u: Tensor, env_step: int) -> Tensor:
        """Compute beta with the latch on.

        Args:
            u: The uncertainty, (N,).
            env_step: Environment step of the run.

        Returns:
            beta, (N,).
        """
        ramp = min(1.0, env_step / self.warmup_steps) if self.warmup_steps else 1.0
        return self.beta_max * torch.sigmoid(self.kappa * (u - self.tau)) * ramp

    @property
    def calibrating(self) -> bool:
        """Whether `calibrate` still wants states."""
        return self.calibrated < self.norm_updates

    def calibrate(self, logits: Tensor, doubt: dict[str, Tensor]) -> None:
        """Take the means of doubt about states from replay into the norms.

        The norms are frozen after norm_updates calls.

        Args:
            logits: l_wm of states from replay, (N, A); not used here.
            doubt: What the agent's ensembles say of them, name -> (N,).
        """
        if not self.calibrating:
            return
        self.calibrated += 1
        for name, value in doubt.items():
            mean = value.mean()
            before = self.norms.get(name, mean)
            self.norms[name] = before + (mean - before) / self.calibrated

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier, the norms and how many gradient steps they are means of."""
        norms = {name: value.clone() for name, value in self.norms.items()}
        return {**super().state_dict(), "norms": norms, "calibrated": self.calibrated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        super().load_state_dict(state)
        self.norms = {name: value.to(self.device) for name, value in state["norms"].items()}
        self.calibrated = state["calibrated"]
