"""Recurrent state-space model: a block-diagonal GRU and 32 categorical latents.

Source: Hafner et al. 2023 (arXiv 2301.04104), section "World model learning"; danijar/dreamerv3,
dreamerv3/rssm.py. Letters: N any batch, B batch, T time, D deter, S latents, K classes, F = D + S*K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lore.base.rng import generator
from lore.base.types import Latent
from lore.config.options import SizeOptions
from lore.dreamer.scan import Weights, posterior_scan
from lore.nn import dense, fused, products
from lore.nn.distributions import categorical_kl, one_hot, unimix_probs
from lore.nn.layers import MLP, BlockLinear, Dense, Linear, Norm

Policy = Callable[[Tensor], Tensor]
"""Features (N, F) -> actions (N,), called once per imagined step."""


@dataclass
class Observed:
    """A sequence seen through the posterior.

    Attributes:
        feat: (B, T, F).
        probs: Posterior probabilities, (B, T, S, K) float32.
        latent: (B, T).
    """

    feat: Tensor
    probs: Tensor
    latent: Latent


@dataclass
class Core:
    """The core's weights in the layout of one step, good until the next update.

    Attributes:
        own: (g, o, o), each block's share of deter.
        shared: (D, 2h), what every block sees of deter and stoch.
        action: (A + 1, D), what each action adds to the hidden layer; the last row is for no action.
    """

    own: Tensor
    shared: Tensor
    action: Tensor


class StepWeights(NamedTuple):
    """What one imagined step multiplies by, for dense.cpp: *_w packed, the rest bfloat16."""

    deter_w: Tensor
    deter_b: Tensor
    deter_scale: Tensor
    stoch_w: Tensor
    stoch_b: Tensor
    stoch_scale: Tensor
    own_w: Tensor
    shared_w: Tensor
    action: Tensor
    core_scale: Tensor
    gates_w: Tensor
    gates_b: Tensor
    prior0_w: Tensor
    prior0_b: Tensor
    prior0_scale: Tensor
    prior1_w: Tensor
    prior1_b: Tensor
    prior1_scale: Tensor
    logits_w: Tensor
    logits_b: Tensor


@dataclass
class Imagined:
    """A rollout of the prior, time first.

    Attributes:
        feat: (H+1, N, F), the start included.
        action: (H+1, N), each taken at its feat.
    """

    feat: Tensor
    action: Tensor


class RSSM(nn.Module):
    """h_t = core(h_{t-1}, z_{t-1}, a_{t-1}); posterior q(z_t | h_t, tokens_t); prior p(z_t | h_t)."""

    def __init__(
        self, embed: int, num_actions: int, size: SizeOptions, unimix: float, free_nats: float, seed: int
    ):
        """Build the networks.

        Args:
            embed: E, width of the encoder's tokens.
            num_actions: A.
            size: Widths of the networks, and the shape of the latents.
            unimix: Share of the uniform distribution in every latent, in [0, 1).
            free_nats: Least value of each KL loss, in nats.
            seed: Seed of the run; chooses the weights.
        """
        super().__init__()
        rng = generator(seed, "init/rssm")
        self.deter, self.stoch, self.classes, self.blocks = size.deter, size.stoch, size.classes, size.blocks
        self.num_actions, self.unimix, self.free_nats = num_actions, unimix, free_nats
        hidden, flat = size.hidden, size.stoch * size.classes
        self.in_deter = Dense(size.deter, hidden, rng)
        self.in_stoch = Dense(flat, hidden, rng)
        self.in_action = Dense(num_actions, hidden, rng)
        self.core_hidden = BlockLinear(size.blocks, size.deter + size.blocks * 3 * hidden, size.deter, rng)
        self.core_norm = Norm(size.deter)
        self.core_gates = BlockLinear(size.blocks, size.deter, 3 * size.deter, rng)
        self.posterior_hidden = Dense(size.deter + embed, hidden, rng)
        self.posterior_logits = Linear(hidden, flat, rng)
        self.dynamics_predictor = MLP(size.deter, hidden, 2, rng, flat)

    @property
    def features(self) -> int:
        """F: width of feat = [deter, one-hot stoch]."""
        return self.deter + self.stoch * self.classes

    @property
    def dtype(self) -> torch.dtype:
        """Compute type of the networks."""
        return self.core_norm.scale.dtype

    def initial(self, n: int, device: torch.device) -> Latent:
        """Return the zero state. Its stoch is never read: is_first masks the one-hot latent as well.

        Args:
            n: N, the number of environments.
            device: Where the tensors are made.
        """
        return Latent(
            torch.zeros(n, self.deter, dtype=self.dtype, device=device),
            torch.zeros(n, self.stoch, dtype=torch.uint8, device=device),
        )

    def feat(self, latent: Latent) -> Tensor:
        """Join the parts of a latent into features.

        Args:
            latent: deter (..., D) and stoch (..., S).

        Returns:
            [deter, one-hot stoch], (..., F), in the compute type.
        """
        hot = one_hot(latent.stoch, self.classes, self.dtype).flatten(-2)
        return torch.cat([latent.deter, hot], -1)

    def prepare(self) -> Core:
        """Lay out the weights for `core`.

        An action is one of few, so what it adds is computed once for each.
        """
        own, h = self.deter // self.blocks, self.in_deter.linear.bias.numel()
        weight = self.core_hidden.weight  # (g, own + 3h, own)
        shared = weight[:, own:].permute(1, 0, 2).flatten(1)  # (3h, D): deter, stoch, action
        every = torch.eye(self.num_actions + 1, self.num_actions, dtype=self.dtype, device=weight.device)
        action = torch.addmm(self.core_hidden.bias, self.in_action(every), shared[2 * h :])
        return Core(weight[:, :own], shared[: 2 * h].t(), action)

    def core(
        self, deter: Tensor, stoch: Tensor, action: Tensor, core: Core, out: Tensor | None = None
    ) -> Tensor:
        """Take one recurrent step.

        Every block sees its own slice of deter and all of the inputs; the shared part of the block-diagonal
        map is one dense product, the rest a batched one.

        Args:
            deter: (N, D).
            stoch: One-hot latents, (N, S*K).
            action: (N,) long; A stands for no action.
            core: What `prepare` gave.
            out: Rows to write to, (N, D); None makes new ones.

        Returns:
            The next deter, (N, D).
        """
        grouped = deter.unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (g, N, o)
        inputs = torch.cat([self.in_deter(deter), self.in_stoch(stoch)], -1)  # (N, 2h)
        own = products.multiply_blocks(grouped, core.own)
        hidden, *_ = fused.core_hidden(
            products.linear(inputs, core.shared), own, self.core_norm.scale, core.action, action
        )
        gates = products.multiply_blocks(hidden, self.core_gates.weight)  # (g, N, 3o)
        return fused.gru(gates, self.core_gates.bias, deter, out)

    def prior_probs(self, deter: Tensor) -> Tensor:
        """Compute the prior p(z_t | h_t).

        Args:
            deter: (..., D).

        Returns:
            Probabilities with the uniform share, (..., S, K), float32.
        """
        logits = self.dynamics_predictor(deter).float().unflatten(-1, (self.stoch, self.classes))
        return unimix_probs(logits, self.unimix)

    def posterior(self, deter: Tensor, tokens: Tensor) -> Tensor:
        """Compute the posterior q(z_t | h_t, tokens_t).

        Args:
            deter: (N, D).
            tokens: Encoded observations, (N, E).

        Returns:
            Logits before the uniform share, (N, S, K).
        """
        logits = self.posterior_logits(self.posterior_hidden(torch.cat([deter, tokens], -1)))
        return logits.unflatten(-1, (self.stoch, self.classes))

    def obs_step(
        self,
        latent: Latent,
        prev_action: Tensor,
        tokens: Tensor,
        is_first: Tensor,
        rng: torch.Generator,
        core: Core | None = None,
    ) -> Latent:
        """Take one step of acting.

        Args:
            latent: The latent before the step, (N).
            prev_action: The action that led here, (N,) long.
            tokens: Encoded observations, (N, E).
            is_first: Where an episode begins, (N,) bool: state and action are zeroed there.
            rng: Draws the latents; on the device of `tokens`.
            core: What `prepare` gave, for a caller that steps often between updates; None prepares it here.

        Returns:
            The posterior latent, (N).
        """
        uniform = torch.rand(len(tokens), self.stoch, generator=rng, device=tokens.device)
        stoch = one_hot(latent.stoch, self.classes, self.dtype).flatten(-2)
        action = prev_action.masked_fill(is_first, self.num_actions)
        keep = (~is_first).to(self.dtype).unsqueeze(-1)
        deter = self.core(latent.deter * keep, stoch * keep, action, core or self.prepare())
        return Latent(deter, fused.sample(self.posterior(deter, tokens), uniform, self.unimix))

    def observe(
        self, start: Latent, prev_action: Tensor, tokens: Tensor, is_first: Tensor, rng: torch.Generator
    ) -> Observed:
        """Compute the posterior over a sequence.

        State and action are zeroed where is_first, so nothing crosses an episode boundary.

        Args:
            start: The latent before the first step, (B).
            prev_action: The action that led to each step, (B, T).
            tokens: Encoded observations, (B, T, E).
            is_first: Where an episode begins, (B, T) bool.
            rng: Draws the latents; on the device of `tokens`.

        Returns:
            Features (B, T, F), posterior probabilities (B, T, S, K) and latents (B, T).
        """
        B, T = is_first.shape
        uniform = torch.rand(T, B, self.stoch, generator=rng, device=tokens.device)
        keep = (~is_first.T).float().unsqueeze(-1)  # (T, B, 1)
        action = one_hot(prev_action.T, self.num_actions, self.dtype) * keep.to(self.dtype)  # (T, B, A)
        stoch = one_hot(start.stoch, self.classes, torch.float32).flatten(-2)
        weights, core_in, post_in = self._scan_inputs(action, tokens.transpose(0, 1))
        deter, hot, probs, index = posterior_scan(
            self.unimix, start.deter.float(), stoch, keep, core_in, post_in, uniform, weights
        )
        feat = torch.cat([deter, hot], -1).to(self.dtype).transpose(0, 1)  # (B, T, F)
        latent = Latent(feat[..., : self.deter].detach(), index.to(torch.uint8).transpose(0, 1))
        return Observed(feat, probs.transpose(0, 1), latent)

    def _scan_inputs(self, action: Tensor, tokens: Tensor) -> tuple[Weights, Tensor, Tensor]:
        """Float32 weights in the scan's layout, and all that does not depend on the recurrent state.

        action (T, B, A), tokens (T, B, E) -> weights, core_in (T, B, D), post_in (T, B, h).
        """
        own = self.deter // self.blocks
        kernel = self.core_hidden.weight.float()  # (g, o + 3h, o)
        shared = kernel[:, own:].permute(1, 0, 2).flatten(1)  # (3h, D): deter, stoch, action
        h = len(shared) // 3
        post = self.posterior_hidden.linear
        weights = Weights(
            deter_w=self.in_deter.linear.weight.float(),
            deter_b=self.in_deter.linear.bias.float(),
            deter_scale=self.in_deter.norm.scale.float(),
            stoch_w=self.in_stoch.linear.weight.float(),
            stoch_b=self.in_stoch.linear.bias.float(),
            stoch_scale=self.in_stoch.norm.scale.float(),
            own_w=kernel[:, :own],
            shared_w=shared[: 2 * h],
            core_scale=self.core_norm.scale.float(),
            gates_w=self.core_gates.weight.float(),
            gates_b=self.core_gates.bias.float(),
            post_w=post.weight[:, : self.deter].float(),
            post_scale=self.posterior_hidden.norm.scale.float(),
            logits_w=self.posterior_logits.weight.float(),
            logits_b=self.posterior_logits.bias.float(),
        )
        core_in = self.in_action(action).float() @ shared[2 * h :] + self.core_hidden.bias.float()
        post_in = products.linear(tokens, post.weight[:, self.deter :], post.bias).float()
        return weights, core_in, post_in

    def kl_losses(self, observed: Observed) -> dict[str, Tensor]:
        """Compute the KL losses: dyn pulls the prior to the posterior, rep the posterior to the prior.

        Args:
            observed: What `observe` gave.

        Returns:
            dyn and rep, each (B, T), at least free_nats.
        """
        post = observed.probs
        prior = self.prior_probs(observed.feat[..., : self.deter])
        dyn = categorical_kl(post.detach(), prior).clamp(min=self.free_nats)
        rep = categorical_kl(post, prior.detach()).clamp(min=self.free_nats)
        return {"dyn": dyn, "rep": rep}

    def prior_step(
        self, feat: Tensor, action: Tensor, uniform: Tensor, core: Core, out: Tensor | None = None
    ) -> Tensor:
        """Take one imagined step.

        Args:
            feat: Features, (N, F).
            action: (N,) long.
            uniform: Random numbers that choose the latents, (N, S) in [0, 1).
            core: What `prepare` gave.
            out: Rows to write to, (N, F); None makes new ones.

        Returns:
            The next features, (N, F).
        """
        out = torch.empty_like(feat) if out is None else out
        deter, stoch = out[:, : self.deter], out[:, self.deter :]
        self.core(feat[:, : self.deter], feat[:, self.deter :], action, core, deter)
        logits = self.dynamics_predictor(deter).unflatten(-1, (self.stoch, self.classes))
        fused.sample(logits, uniform, self.unimix, stoch)
        return out

    @torch.no_grad()
    def imagine(self, start: Tensor, policy: Policy, horizon: int, rng: torch.Generator) -> Imagined:
        """Roll the prior forward under a policy, without gradient.

        Args:
            start: Features, (N, F).
            policy: Chooses the actions.
            horizon: H, the number of steps.
            rng: Draws the latents; on the device of `start`.

        Returns:
            Features (H+1, N, F), the start included, and the action at each, (H+1, N).
        """
        N, core = len(start), self.prepare()
        packed = self._pack(core) if self._packs(start) else None
        uniform = torch.rand(horizon, N, self.stoch, generator=rng, device=start.device)
        feats = torch.empty(horizon + 1, N, self.features, dtype=self.dtype, device=start.device)
        actions = torch.empty(horizon + 1, N, dtype=torch.long, device=start.device)
        feats[0] = start
        for t in range(horizon):
            actions[t] = policy(feats[t])
            if packed is None:
                self.prior_step(feats[t], actions[t], uniform[t], core, feats[t + 1])
            else:
                self._native_step(feats[t], actions[t], uniform[t], packed, feats[t + 1])
        actions[horizon] = policy(feats[horizon])
        return Imagined(feats, actions)

    def _packs(self, feat: Tensor) -> bool:
        """Whether dense.cpp takes imagined steps of feats (N, F)."""
        own, hidden = self.deter // self.blocks, self.in_deter.linear.bias.numel()
        even = all(width % 2 == 0 for width in (own, hidden, self.stoch * self.classes))
        return even and self.deter * hidden <= dense.LARGEST and dense.multiplies(feat)

    def _pack(self, core: Core) -> StepWeights:
        """The weights of `prior_step` for dense.cpp."""
        first, second, last = self.dynamics_predictor.layers
        assert isinstance(first, Dense) and isinstance(second, Dense) and isinstance(last, Linear)
        maps = (self.in_deter.linear, self.in_stoch.linear, first.linear, second.linear, last)
        deter, stoch, prior0, prior1, logits = (dense.pack(m.weight.t()) for m in maps)
        return StepWeights(
            deter_w=deter,
            deter_b=self.in_deter.linear.bias,
            deter_scale=self.in_deter.norm.scale,
            stoch_w=stoch,
            stoch_b=self.in_stoch.linear.bias,
            stoch_scale=self.in_stoch.norm.scale,
            own_w=dense.pack(core.own),
            shared_w=dense.pack(core.shared.t()),
            action=core.action,
            core_scale=self.core_norm.scale,
            gates_w=dense.pack(self.core_gates.weight),
            gates_b=self.core_gates.bias,
            prior0_w=prior0,
            prior0_b=first.linear.bias,
            prior0_scale=first.norm.scale,
            prior1_w=prior1,
            prior1_b=second.linear.bias,
            prior1_scale=second.norm.scale,
            logits_w=logits,
            logits_b=last.bias,
        )

    def _native_step(
        self, feat: Tensor, action: Tensor, uniform: Tensor, weights: StepWeights, out: Tensor
    ) -> None:
        """`prior_step` by dense.cpp."""
        kernel = fused.native_kernel("prior_step", feat)
        assert kernel is not None
        sizes = (len(feat), self.deter, self.blocks, self.in_deter.linear.bias.numel())
        rest = (self.stoch, self.classes, self.unimix, fused.NORM_EPS)
        kernel(feat, feat.stride(0), action, uniform, weights, out, out.stride(0), *sizes, *rest)
