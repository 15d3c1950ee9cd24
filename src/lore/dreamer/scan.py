"""The posterior over a sequence as one differentiable operation with a hand-written gradient.

The recurrence is the same as RSSM.core and RSSM.posterior step by step (a test holds them together).
Written out, a step back in time costs its own small products only: the gradients of all weights are taken
once, over the whole sequence. Letters: T time, B batch, D deter, g blocks, o = D / g, h hidden, S latents,
K classes. Everything is float32: at these batch sizes a float32 product is as fast as a bfloat16 one.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lore.nn import fused
from lore.nn.fused import native_kernel
from lore.nn.products import outer_sum


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


class Inputs(NamedTuple):
    """What a scan starts from and is fed, float32."""

    deter: Tensor  # (B, D), before the first step
    stoch: Tensor  # (B, S*K), likewise
    keep: Tensor  # (T, B, 1): 0 at is_first, else 1
    core_in: Tensor  # (T, B, D): what action and bias add inside the core
    post_in: Tensor  # (T, B, h): what tokens and bias add to the posterior
    uniform: Tensor  # (T, B, S) in [0, 1)


class Kept(NamedTuple):
    """What the gradient needs of all steps: the state before each, *_z before a norm and *_r, its inverse
    root mean square, and the results."""

    deter: Tensor  # (T, B, D), zeroed at is_first
    stoch: Tensor  # (T, B, S*K), likewise
    in_deter_z: Tensor  # (T, B, h)
    in_deter_r: Tensor  # (T, B)
    in_stoch_z: Tensor
    in_stoch_r: Tensor
    shared: Tensor  # (T, B, 2h)
    core_z: Tensor  # (T, B, D)
    core_r: Tensor
    hidden: Tensor  # (g, T, B, o)
    gates: Tensor  # (g, T, B, 3o), as fused.gru leaves them
    post_z: Tensor  # (T, B, h)
    post_r: Tensor
    post: Tensor  # (T, B, h)
    out: Tensor  # (T, B, D)
    hot: Tensor  # (T, B, S*K)
    probs: Tensor  # (T, B, S, K)


class Into(NamedTuple):
    """Gradients that reach the results."""

    deter: Tensor  # (T, B, D)
    hot: Tensor  # (T, B, S*K)
    probs: Tensor  # (T, B, S, K)


class Back(NamedTuple):
    """Gradients of what is linear in the weights, for all steps, and of the norms' scales."""

    logits: Tensor  # (T, B, S*K)
    post_z: Tensor
    gates: Tensor
    core_z: Tensor
    in_deter_z: Tensor
    in_stoch_z: Tensor
    post_scale: Tensor
    core_scale: Tensor
    deter_scale: Tensor
    stoch_scale: Tensor


Tuples = TypeVar("Tuples", Inputs, Weights, Into)


class _PosteriorScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, unimix, deter, stoch, keep, core_in, post_in, uniform, *weights):  # type: ignore[override]
        w = Weights(*weights)
        T, B, D = core_in.shape
        S, h, g, o = uniform.shape[-1], w.deter_b.numel(), *w.own_w.shape[:2]
        Z = w.logits_b.numel()
        empty = core_in.new_empty
        kept = Kept(
            *(empty(T, B, D), empty(T, B, Z), empty(T, B, h), empty(T, B), empty(T, B, h), empty(T, B)),
            *(empty(T, B, 2 * h), empty(T, B, D), empty(T, B), empty(g, T, B, o), empty(g, T, B, 3 * o)),
            *(empty(T, B, h), empty(T, B), empty(T, B, h), empty(T, B, D), empty(T, B, Z)),
            empty(T, B, S, Z // S),
        )
        index = torch.empty(T, B, S, dtype=torch.uint8, device=core_in.device)
        kernel = native_kernel("scan", core_in)
        if kernel is None:
            _forward(w, kept, index, deter, stoch, keep, core_in, post_in, uniform, unimix)
        else:
            inputs = _contiguous(Inputs(deter, stoch, keep, core_in, post_in, uniform))
            work = empty(2 * B * D + B * Z)
            sizes = (T, B, D, g, h, S, Z // S)
            kernel(inputs, _contiguous(_last_axis_out(w)), kept, index, work, *sizes, unimix)
        ctx.weights, ctx.kept, ctx.keep, ctx.unimix = w, kept, keep, unimix
        ctx.mark_non_differentiable(index)
        # Aliases: an output that its own context holds would never be freed.
        return kept.out.detach(), kept.hot.detach(), kept.probs.detach(), index

    @staticmethod
    def backward(ctx, grad_deter, grad_hot, grad_probs, _):  # type: ignore[override]
        w: Weights = ctx.weights
        kept: Kept = ctx.kept
        like = torch.empty_like
        back = Back(
            *(like(kept.hot), like(kept.post_z), like(kept.gates), like(kept.core_z)),
            *(like(kept.in_deter_z), like(kept.in_stoch_z)),
            *(torch.zeros_like(x) for x in (w.post_scale, w.core_scale, w.deter_scale, w.stoch_scale)),
        )
        T, B, D = grad_deter.shape
        g, h, (S, K) = len(w.own_w), w.deter_b.numel(), kept.probs.shape[2:]
        kernel = native_kernel("scan_back", grad_deter)
        if kernel is None:
            _backward(w, kept, back, grad_deter, grad_hot, grad_probs, ctx.keep, ctx.unimix)
        else:
            into = _contiguous(Into(grad_deter, grad_hot, grad_probs))
            keep, weights = ctx.keep.contiguous(), _contiguous(_last_axis_in(w))
            work = grad_deter.new_empty(B * (3 * D + S * K + 3 * h))
            kernel(into, keep, weights, kept, back, work, T, B, D, g, h, S, K, ctx.unimix)
        grads = _weight_grads(kept, back)
        return None, None, None, None, back.core_z, back.post_z, None, *grads


def _contiguous(tensors: Tuples) -> Tuples:
    """The same tuple of tensors, each in one piece."""
    return type(tensors)(*(x.contiguous() for x in tensors))


def _last_axis_out(w: Weights) -> Weights:
    """The weights with every *_w as (..., in, out)."""
    names = ("deter_w", "stoch_w", "post_w", "logits_w")
    return w._replace(**{name: getattr(w, name).t() for name in names})


def _last_axis_in(w: Weights) -> Weights:
    """The weights with every *_w as (..., out, in)."""
    return w._replace(own_w=w.own_w.mT, shared_w=w.shared_w.mT, gates_w=w.gates_w.mT)


def _forward(
    w: Weights,
    kept: Kept,
    index: Tensor,
    deter: Tensor,
    stoch: Tensor,
    keep: Tensor,
    core_in: Tensor,
    post_in: Tensor,
    uniform: Tensor,
    unimix: float,
) -> None:
    """Fills `kept` and `index` (T, B, S), step after step."""
    g, h = len(w.own_w), w.deter_b.numel()
    for t in range(len(core_in)):
        deter = torch.mul(deter, keep[t], out=kept.deter[t])
        stoch = torch.mul(stoch, keep[t], out=kept.stoch[t])
        y0 = torch.addmm(w.deter_b, deter, w.deter_w.T, out=kept.in_deter_z[t])
        y1 = torch.addmm(w.stoch_b, stoch, w.stoch_w.T, out=kept.in_stoch_z[t])
        shared = kept.shared[t]
        kept.in_deter_r[t] = fused.norm_silu_forward(y0, w.deter_scale, shared[:, :h])[1]
        kept.in_stoch_r[t] = fused.norm_silu_forward(y1, w.stoch_scale, shared[:, h:])[1]
        own = torch.bmm(deter.unflatten(-1, (g, -1)).transpose(0, 1), w.own_w)  # (g, B, o)
        hidden, z, r = fused.core_hidden(torch.addmm(core_in[t], shared, w.shared_w), own, w.core_scale)
        assert z is not None
        kept.hidden[:, t], kept.core_z[t], kept.core_r[t] = hidden, z, r
        gates = torch.bmm(hidden, w.gates_w)  # (g, B, 3o)
        deter = fused.gru(gates, w.gates_b, deter, kept.out[t], keep=True)
        kept.gates[:, t] = gates
        y2 = torch.addmm(post_in[t], deter, w.post_w.T, out=kept.post_z[t])
        kept.post[t], kept.post_r[t] = fused.norm_silu_forward(y2, w.post_scale)
        logits = torch.addmm(w.logits_b, kept.post[t], w.logits_w.T).view_as(kept.probs[t])
        index[t] = fused.sample(logits, uniform[t], unimix, kept.hot[t], kept.probs[t])
        stoch = kept.hot[t]


def _backward(
    w: Weights,
    kept: Kept,
    back: Back,
    grad_deter: Tensor,
    grad_hot: Tensor,
    grad_probs: Tensor,
    keep: Tensor,
    unimix: float,
) -> None:
    """Fills `back`, step after step from the last."""
    B, D = grad_deter.shape[1:]
    g, h = len(w.own_w), w.deter_b.numel()
    own_back, gates_back = w.own_w.mT, w.gates_w.mT
    deter_next, stoch_next = torch.zeros_like(grad_deter[0]), torch.zeros_like(grad_hot[0])
    for t in range(len(grad_deter) - 1, -1, -1):
        into_probs = [grad_probs[t], grad_hot[t], stoch_next]
        g_logits = fused.sample_back(into_probs, kept.probs[t], unimix).view(B, -1)
        g_y2, s_post = fused.norm_silu_back(
            g_logits @ w.logits_w, kept.post_z[t], kept.post_r[t], w.post_scale
        )
        g_out = torch.addmm(grad_deter[t] + deter_next, g_y2, w.post_w)
        g_gates, g_deter = fused.gru_back(g_out, kept.gates[:, t].contiguous(), kept.deter[t])
        g_hidden = torch.bmm(g_gates, gates_back).transpose(0, 1).reshape(B, D)
        g_z, s_core = fused.norm_silu_back(g_hidden, kept.core_z[t], kept.core_r[t], w.core_scale)
        own = torch.bmm(g_z.unflatten(-1, (g, -1)).transpose(0, 1), own_back)
        g_shared = g_z @ w.shared_w.T
        g_y0, s_deter = fused.norm_silu_back(
            g_shared[:, :h], kept.in_deter_z[t], kept.in_deter_r[t], w.deter_scale
        )
        g_y1, s_stoch = fused.norm_silu_back(
            g_shared[:, h:], kept.in_stoch_z[t], kept.in_stoch_r[t], w.stoch_scale
        )
        deter_next = torch.addmm(g_deter + own.transpose(0, 1).reshape(B, D), g_y0, w.deter_w) * keep[t]
        stoch_next = (g_y1 @ w.stoch_w) * keep[t]
        back.gates[:, t] = g_gates
        parts = (g_logits, g_y2, g_z, g_y0, g_y1)
        whole = (back.logits, back.post_z, back.core_z, back.in_deter_z, back.in_stoch_z)
        for to, part in zip(whole, parts, strict=True):
            to[t] = part
        for total, part in zip(back[-4:], (s_post, s_core, s_deter, s_stoch), strict=True):
            total += part


def _weight_grads(kept: Kept, back: Back) -> Weights:
    """Gradients of all weights, each one product over the whole sequence."""
    g, o = len(kept.hidden), kept.hidden.shape[-1]
    rows = {name: getattr(kept, name).flatten(0, 1) for name in ("deter", "stoch", "shared", "out", "post")}
    logits, post_z, core_z, y0, y1 = (
        x.flatten(0, 1) for x in (back.logits, back.post_z, back.core_z, back.in_deter_z, back.in_stoch_z)
    )
    gates = back.gates.flatten(1, 2)  # (g, T*B, 3o)
    return Weights(
        deter_w=outer_sum(y0, rows["deter"]),
        deter_b=y0.sum(0),
        deter_scale=back.deter_scale,
        stoch_w=outer_sum(y1, rows["stoch"]),
        stoch_b=y1.sum(0),
        stoch_scale=back.stoch_scale,
        own_w=torch.bmm(
            rows["deter"].unflatten(-1, (g, o)).permute(1, 2, 0), core_z.unflatten(-1, (g, o)).transpose(0, 1)
        ),
        shared_w=outer_sum(rows["shared"], core_z),
        core_scale=back.core_scale,
        gates_w=torch.bmm(kept.hidden.flatten(1, 2).mT, gates),
        gates_b=gates.sum(1).flatten(),
        post_w=outer_sum(post_z, rows["out"]),
        post_scale=back.post_scale,
        logits_w=outer_sum(logits, rows["post"]),
        logits_b=logits.sum(0),
    )


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
    """Compute the posterior latents of a sequence, step after step.

    All tensors are float32. No gradient reaches the starting state.

    Args:
        unimix: Share of the uniform distribution in the posterior, in [0, 1).
        deter: Recurrent state before the first step, (B, D).
        stoch: One-hot latents before the first step, (B, S*K).
        keep: 0 at is_first, else 1, (T, B, 1).
        core_in: What action and bias add inside the core, (T, B, D).
        post_in: What tokens and bias add to the posterior, (T, B, h).
        uniform: Random numbers that choose the latents, (T, B, S) in [0, 1).
        weights: Weights of one step.

    Returns:
        deter (T, B, D), one-hot latents (T, B, S*K) with straight-through gradient, posterior probabilities
        (T, B, S, K) and class indices (T, B, S).
    """
    return _PosteriorScan.apply(unimix, deter, stoch, keep, core_in, post_in, uniform, *weights)  # type: ignore[return-value]
