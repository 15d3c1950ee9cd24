"""The posterior over a sequence as one differentiable operation with a hand-written gradient.

The recurrence is the same as RSSM.core and RSSM.posterior_probs step by step (a test holds them together).
Written out, a step back in time costs its own small products only: the gradients of all weights are taken
once, over the whole sequence. Letters: T time, B batch, D deter, g blocks, o = D / g, h hidden, S latents,
K classes. Everything is float32: at these batch sizes a float32 product is as fast as a bfloat16 one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lore.nn.distributions import fast_tanh, one_hot, sample_index, unimix_probs
from lore.nn.layers import NORM_EPS

aten = torch.ops.aten


class Weights(NamedTuple):
    """Weights of one step, float32. Products are x @ weight.T for *_w of shape (out, in)."""

    deter_w: Tensor  # (h, D)
    deter_b: Tensor
    deter_scale: Tensor
    stoch_w: Tensor  # (h, S*K)
    stoch_b: Tensor
    stoch_scale: Tensor
    own_w: Tensor  # (g, o, o): each block's share of deter
    shared_w: Tensor  # (2h, D): the inputs that every block sees
    core_scale: Tensor  # (D,)
    gates_w: Tensor  # (g, o, 3o)
    gates_b: Tensor  # (g, 1, 3o)
    post_w: Tensor  # (h, D)
    post_scale: Tensor
    logits_w: Tensor  # (S*K, h)
    logits_b: Tensor


@dataclass
class _Step:
    """What one step keeps for its gradient: `n` normalised, `r` inverse root mean square, `a` before SiLU."""

    deter: Tensor
    stoch: Tensor
    deter_norm: tuple[Tensor, Tensor, Tensor]
    stoch_norm: tuple[Tensor, Tensor, Tensor]
    shared: Tensor
    core_norm: tuple[Tensor, Tensor, Tensor]
    hidden: Tensor
    gates: Tensor
    reset: Tensor
    candidate: Tensor
    update: Tensor
    out: Tensor
    post_norm: tuple[Tensor, Tensor, Tensor]
    post: Tensor
    probs: Tensor


def _norm_silu(x: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    r = x.square().mean(-1, keepdim=True).add_(NORM_EPS).rsqrt_()
    n = x * r
    a = n * scale
    return torch.nn.functional.silu(a), (n, r, a)


def _norm_silu_back(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor], scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and, before summation, of the scale."""
    n, r, a = saved
    grad_a = aten.silu_backward(grad, a)
    grad_n = grad_a * scale
    mean = (grad_n * n).mean(-1, keepdim=True)
    return grad_n.addcmul_(n, mean, value=-1).mul_(r), grad_a.mul_(n)


class _PosteriorScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unimix, deter, stoch, keep, core_in, post_in, uniform, *weights):  # type: ignore[override]
        w = Weights(*weights)
        T, B, D = core_in.shape
        g = w.own_w.shape[0]
        S = uniform.shape[-1]
        K = w.logits_b.numel() // S
        steps, indices, hots = [], [], []
        for t in range(T):
            deter, stoch = deter * keep[t], stoch * keep[t]
            x0, norm0 = _norm_silu(torch.addmm(w.deter_b, deter, w.deter_w.T), w.deter_scale)
            x1, norm1 = _norm_silu(torch.addmm(w.stoch_b, stoch, w.stoch_w.T), w.stoch_scale)
            shared = torch.cat([x0, x1], -1)
            own = deter.view(B, g, -1).transpose(0, 1)  # (g, B, o)
            z = torch.addmm(core_in[t], shared, w.shared_w)
            z.view(B, g, -1).add_(torch.bmm(own, w.own_w).transpose(0, 1))
            hidden, norm2 = _norm_silu(z, w.core_scale)
            gates = torch.baddbmm(w.gates_b, hidden.view(B, g, -1).transpose(0, 1), w.gates_w)  # (g, B, 3o)
            reset, candidate, update = gates.chunk(3, -1)
            reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
            candidate = fast_tanh(reset * candidate)
            out = torch.lerp(own, candidate, update).transpose(0, 1).reshape(B, D)
            post, norm3 = _norm_silu(torch.addmm(post_in[t], out, w.post_w.T), w.post_scale)
            logits = torch.addmm(w.logits_b, post, w.logits_w.T).view(B, S, K)
            probs = unimix_probs(logits, unimix)
            index = sample_index(probs, uniform[t])
            hot = one_hot(index, K, torch.float32).view(B, S * K)
            gate = (gates, reset, candidate, update)
            steps.append(
                _Step(deter, stoch, norm0, norm1, shared, norm2, hidden, *gate, out, norm3, post, probs)
            )
            indices.append(index)
            hots.append(hot)
            deter, stoch = out, hot
        ctx.steps, ctx.weights, ctx.keep, ctx.unimix = steps, w, keep, unimix
        index = torch.stack(indices)
        ctx.mark_non_differentiable(index)
        return (
            torch.stack([s.out for s in steps]),
            torch.stack(hots),
            torch.stack([s.probs for s in steps]),
            index,
        )

    @staticmethod
    def backward(ctx, grad_deter, grad_hot, grad_probs, _):  # type: ignore[override]
        w: Weights = ctx.weights
        T, B, D = grad_deter.shape
        g, o = w.own_w.shape[0], w.own_w.shape[1]
        S, K = grad_probs.shape[-2:]
        own_back, gates_back = w.own_w.transpose(1, 2), w.gates_w.transpose(1, 2)
        back: list[tuple[Tensor, ...]] = []
        deter_next = stoch_next = None
        for t in range(T - 1, -1, -1):
            s: _Step = ctx.steps[t]
            g_hot, g_out = grad_hot[t], grad_deter[t]
            if deter_next is not None:
                g_hot, g_out = g_hot + stoch_next, g_out + deter_next
            g_probs = (grad_probs[t] + g_hot.view(B, S, K)) * (1.0 - ctx.unimix)
            soft = (s.probs - ctx.unimix / K) / (1.0 - ctx.unimix)
            weighted = g_probs * soft
            g_logits = (weighted - soft * weighted.sum(-1, keepdim=True)).view(B, S * K)
            g_post, g_post_scale = _norm_silu_back(g_logits @ w.logits_w, s.post_norm, w.post_scale)
            g_out = torch.addmm(g_out, g_post, w.post_w)
            g_own_out = g_out.view(B, g, o).transpose(0, 1)  # (g, B, o)
            own = s.deter.view(B, g, o).transpose(0, 1)
            g_candidate = g_own_out * s.update
            g_update = aten.sigmoid_backward(g_own_out * (s.candidate - own), s.update)
            g_inner = aten.tanh_backward(g_candidate, s.candidate)
            g_reset = aten.sigmoid_backward(g_inner * s.gates[..., o : 2 * o], s.reset)
            g_gates = torch.cat([g_reset, g_inner * s.reset, g_update], -1)  # (g, B, 3o)
            g_hidden = torch.bmm(g_gates, gates_back).transpose(0, 1).reshape(B, D)
            g_z, g_core_scale = _norm_silu_back(g_hidden, s.core_norm, w.core_scale)
            g_own = g_own_out - g_candidate
            g_own += torch.bmm(g_z.view(B, g, o).transpose(0, 1), own_back)
            g_x0, g_x1 = (g_z @ w.shared_w.T).chunk(2, -1)
            g_y0, g_scale0 = _norm_silu_back(g_x0, s.deter_norm, w.deter_scale)
            g_y1, g_scale1 = _norm_silu_back(g_x1, s.stoch_norm, w.stoch_scale)
            g_deter = g_own.transpose(0, 1).reshape(B, D).addmm_(g_y0, w.deter_w)
            deter_next, stoch_next = g_deter * ctx.keep[t], (g_y1 @ w.stoch_w) * ctx.keep[t]
            back.append(
                (g_logits, g_post, g_post_scale, g_gates, g_z, g_core_scale, g_y0, g_scale0, g_y1, g_scale1)
            )
        back.reverse()
        grads, core_in, post_in = _weight_grads(ctx.steps, back, g, o)
        return None, None, None, None, core_in.view(T, B, D), post_in.view(T, B, -1), None, *grads


def _weight_grads(
    steps: list[_Step], back: list[tuple[Tensor, ...]], g: int, o: int
) -> tuple[Weights, Tensor, Tensor]:
    """Gradients of all weights over the whole sequence, and of core_in and post_in, rows (T*B, ...)."""
    logits, post, post_scale, gates, z, core_scale, y0, scale0, y1, scale1 = zip(*back, strict=True)
    g_logits, g_post, g_z, g_y0, g_y1 = (torch.cat(x) for x in (logits, post, z, y0, y1))
    g_gates = torch.cat(gates, 1)  # (g, T*B, 3o)
    deter = torch.cat([s.deter for s in steps])
    hidden = torch.cat([s.hidden for s in steps])
    grads = Weights(
        deter_w=g_y0.T @ deter,
        deter_b=g_y0.sum(0),
        deter_scale=torch.cat(scale0).sum(0),
        stoch_w=g_y1.T @ torch.cat([s.stoch for s in steps]),
        stoch_b=g_y1.sum(0),
        stoch_scale=torch.cat(scale1).sum(0),
        own_w=torch.bmm(deter.view(-1, g, o).permute(1, 2, 0), g_z.view(-1, g, o).transpose(0, 1)),
        shared_w=torch.cat([s.shared for s in steps]).T @ g_z,
        core_scale=torch.cat(core_scale).sum(0),
        gates_w=torch.bmm(hidden.view(-1, g, o).permute(1, 2, 0), g_gates),
        gates_b=g_gates.sum(1, keepdim=True),
        post_w=g_post.T @ torch.cat([s.out for s in steps]),
        post_scale=torch.cat(post_scale).sum(0),
        logits_w=g_logits.T @ torch.cat([s.post for s in steps]),
        logits_b=g_logits.sum(0),
    )
    return grads, g_z, g_post


def posterior_scan(
    unimix: float,
    deter: Tensor,
    stoch: Tensor,
    keep: Tensor,
    core_in: Tensor,
    post_in: Tensor,
    uniform: Tensor,
    weights: Weights,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Posterior latents of a sequence, step after step.

    deter (B, D) and stoch (B, S*K) before the first step; keep (T, B, 1) is 0 at is_first; core_in (T, B, D):
    what action and bias add inside the core; post_in (T, B, h): what tokens and bias add to the posterior;
    uniform (T, B, S) in [0, 1). All float32.

    Returns deter (T, B, D), one-hot latents (T, B, S*K) with straight-through gradient, posterior
    probabilities (T, B, S, K) and class indices (T, B, S). No gradient reaches the starting state.
    """
    return _PosteriorScan.apply(unimix, deter, stoch, keep, core_in, post_in, uniform, *weights)  # type: ignore[return-value]
