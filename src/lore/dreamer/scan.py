"""The posterior over a sequence as one differentiable operation with a hand-written gradient.

The recurrence is the same as RSSM.core and RSSM.posterior step by step (a test holds them together).
Written out, a step back in time costs its own small products only: the gradients of all weights are taken
once, over the whole sequence. Letters: T time, B batch, D deter, g blocks, o = D / g, h hidden, S latents,
K classes. Everything is float32: at these batch sizes a float32 product is as fast as a bfloat16 one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lore.nn import fused


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
    gates_b: Tensor  # (g * 3o,)
    post_w: Tensor  # (h, D)
    post_scale: Tensor
    logits_w: Tensor  # (S*K, h)
    logits_b: Tensor


class _Step(NamedTuple):
    """What one step keeps for its gradient: inputs of the products, `z` before a norm, `r` its inverse
    root mean square."""

    deter: Tensor
    stoch: Tensor
    in_deter: tuple[Tensor, Tensor]
    in_stoch: tuple[Tensor, Tensor]
    shared: Tensor
    core: tuple[Tensor, Tensor]
    hidden: Tensor
    gates: Tensor
    out: Tensor
    posterior: tuple[Tensor, Tensor]
    post: Tensor


class _PosteriorScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unimix, deter, stoch, keep, core_in, post_in, uniform, *weights):  # type: ignore[override]
        w = Weights(*weights)
        T, B, D = core_in.shape
        g, h = w.own_w.shape[0], w.deter_b.numel()
        S = uniform.shape[-1]
        K = w.logits_b.numel() // S
        resets = [bool(x) for x in (keep == 0).flatten(1).any(1)] if keep.device.type == "cpu" else [True] * T
        deters, hots = core_in.new_empty(T, B, D), core_in.new_empty(T, B, S * K)
        probs, indices = core_in.new_empty(T, B, S, K), []
        steps = []
        for t in range(T):
            if resets[t]:
                deter, stoch = deter * keep[t], stoch * keep[t]
            shared = core_in.new_empty(B, 2 * h)
            y0 = torch.addmm(w.deter_b, deter, w.deter_w.T)
            y1 = torch.addmm(w.stoch_b, stoch, w.stoch_w.T)
            _, r0 = fused.norm_silu_forward(y0, w.deter_scale, shared[:, :h])
            _, r1 = fused.norm_silu_forward(y1, w.stoch_scale, shared[:, h:])
            own = torch.bmm(deter.view(B, g, -1).transpose(0, 1), w.own_w)  # (g, B, o)
            hidden, z, r = fused.core_hidden(torch.addmm(core_in[t], shared, w.shared_w), own, w.core_scale)
            assert z is not None
            gates = torch.bmm(hidden, w.gates_w)  # (g, B, 3o)
            out = fused.gru(gates, w.gates_b, deter, deters[t], keep=True)
            y2 = torch.addmm(post_in[t], out, w.post_w.T)
            post, r2 = fused.norm_silu_forward(y2, w.post_scale)
            logits = torch.addmm(w.logits_b, post, w.logits_w.T).view(B, S, K)
            indices.append(fused.sample(logits, uniform[t], unimix, hots[t], probs[t]))
            steps.append(
                _Step(deter, stoch, (y0, r0), (y1, r1), shared, (z, r), hidden, gates, out, (y2, r2), post)
            )
            deter, stoch = out, hots[t]
        ctx.steps, ctx.weights, ctx.keep, ctx.resets, ctx.unimix = steps, w, keep, resets, unimix
        ctx.probs = probs
        index = torch.stack(indices)
        ctx.mark_non_differentiable(index)
        # Aliases: an output that its own context holds would never be freed.
        return deters.detach(), hots.detach(), probs.detach(), index

    @staticmethod
    def backward(ctx, grad_deter, grad_hot, grad_probs, _):  # type: ignore[override]
        w: Weights = ctx.weights
        T, B, D = grad_deter.shape
        g, o = w.own_w.shape[0], w.own_w.shape[1]
        h = w.deter_b.numel()
        own_back, gates_back, shared_back = w.own_w.transpose(1, 2), w.gates_w.transpose(1, 2), w.shared_w.T
        scales = [torch.zeros_like(x) for x in (w.post_scale, w.core_scale, w.deter_scale, w.stoch_scale)]
        back: list[tuple[Tensor, ...]] = []
        deter_next = stoch_next = None
        for t in range(T - 1, -1, -1):
            s: _Step = ctx.steps[t]
            g_out, into_probs = grad_deter[t], [grad_probs[t], grad_hot[t]]
            if deter_next is not None and stoch_next is not None:
                g_out = g_out + deter_next
                into_probs.append(stoch_next)
            g_logits = fused.sample_back(into_probs, ctx.probs[t], ctx.unimix).view(B, -1)
            g_post, s_post = fused.norm_silu_back(g_logits @ w.logits_w, *s.posterior, w.post_scale)
            g_out = torch.addmm(g_out, g_post, w.post_w)
            g_gates, g_deter = fused.gru_back(g_out, s.gates, s.deter)
            g_hidden = torch.bmm(g_gates, gates_back).transpose(0, 1).reshape(B, D)
            g_z, s_core = fused.norm_silu_back(g_hidden, *s.core, w.core_scale)
            g_deter += torch.bmm(g_z.view(B, g, o).transpose(0, 1), own_back).transpose(0, 1).reshape(B, D)
            g_shared = g_z @ shared_back
            g_y0, s_deter = fused.norm_silu_back(g_shared[:, :h], *s.in_deter, w.deter_scale)
            g_y1, s_stoch = fused.norm_silu_back(g_shared[:, h:], *s.in_stoch, w.stoch_scale)
            deter_next, stoch_next = g_deter.addmm_(g_y0, w.deter_w), g_y1 @ w.stoch_w
            if ctx.resets[t]:
                deter_next, stoch_next = deter_next * ctx.keep[t], stoch_next * ctx.keep[t]
            back.append((g_logits, g_post, g_gates, g_z, g_y0, g_y1))
            for total, part in zip(scales, (s_post, s_core, s_deter, s_stoch), strict=True):
                total += part
        back.reverse()
        grads, core_in, post_in = _weight_grads(ctx.steps, back, scales, g, o)
        return None, None, None, None, core_in.view(T, B, D), post_in.view(T, B, -1), None, *grads


def _weight_grads(
    steps: list[_Step], back: list[tuple[Tensor, ...]], scales: list[Tensor], g: int, o: int
) -> tuple[Weights, Tensor, Tensor]:
    """Gradients of all weights over the whole sequence, and of core_in and post_in, rows (T*B, ...)."""
    logits, post, gates, z, y0, y1 = zip(*back, strict=True)
    g_logits, g_post, g_z, g_y0, g_y1 = (torch.cat(x) for x in (logits, post, z, y0, y1))
    g_gates = torch.cat(gates, 1)  # (g, T*B, 3o)
    deter = torch.cat([s.deter for s in steps])
    hidden = torch.cat([s.hidden for s in steps], 1)  # (g, T*B, o)
    grads = Weights(
        deter_w=g_y0.T @ deter,
        deter_b=g_y0.sum(0),
        deter_scale=scales[2],
        stoch_w=g_y1.T @ torch.cat([s.stoch for s in steps]),
        stoch_b=g_y1.sum(0),
        stoch_scale=scales[3],
        own_w=torch.bmm(deter.view(-1, g, o).permute(1, 2, 0), g_z.view(-1, g, o).transpose(0, 1)),
        shared_w=torch.cat([s.shared for s in steps]).T @ g_z,
        core_scale=scales[1],
        gates_w=torch.bmm(hidden.transpose(1, 2), g_gates),
        gates_b=g_gates.sum(1).flatten(),
        post_w=g_post.T @ torch.cat([s.out for s in steps]),
        post_scale=scales[0],
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
