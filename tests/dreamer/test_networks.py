"""Encoder and decoder: what enters, what leaves, and each kind of loss."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from tests.dreamer import samples as ref
from tests.dreamer.samples import TINY, rng, shake
from torch import nn

from lore.base.types import ObsSpec
from lore.dreamer.networks import Decoder, Encoder

F32 = torch.float32
SYMBOLIC = {
    "object": ObsSpec((2, 2), classes=3),
    "color": ObsSpec((2, 2), classes=2),
    "direction": ObsSpec((), classes=4),
}
VECTOR = {"image": ObsSpec((5,), dtype="float32")}
RGB = {"image": ObsSpec((64, 64, 3))}
FEATURES = TINY.deter + TINY.stoch * TINY.classes


def encoder(spec):
    made = Encoder(spec, TINY, 0)
    shake(made.parameters())
    return made


def decoder(spec):
    made = Decoder(spec, TINY, 0)
    shake(made.parameters())
    return made


def inputs_of(made, obs):
    """The vector that enters the encoder's MLP."""
    made.mlp = nn.Identity()
    return made(obs, F32)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def channel_norm(x, scale):
    """x (C, H, W)."""
    return x / np.sqrt((x**2).mean(0, keepdims=True) + 1e-4) * scale[:, None, None]


def conv(x, weight, bias):
    """x (C, H, W), weight (O, C, 5, 5): 'same' correlation."""
    return np.stack(
        [
            sum(correlate2d(c, k, mode="same") for c, k in zip(x, kernel, strict=True)) + b
            for kernel, b in zip(weight, bias, strict=True)
        ]
    )


def numbers(module):
    return {k: v.numpy() for k, v in ref.doubles(module).items()}


# encoder


def test_categories_enter_as_one_hot_cells_key_by_key_in_alphabetical_order():
    obs = {
        "object": torch.tensor([[[2, 0], [1, 1]]], dtype=torch.uint8),
        "color": torch.tensor([[[0, 1], [1, 0]]], dtype=torch.uint8),
        "direction": torch.tensor([3], dtype=torch.uint8),
    }
    color = [1, 0, 0, 1, 0, 1, 1, 0]
    direction = [0, 0, 0, 1]
    kinds = [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert inputs_of(encoder(SYMBOLIC), obs).tolist() == [color + direction + kinds]


def test_vectors_enter_through_symlog():
    x = torch.tensor([[0.0, 1.0, -1.0, 255.0, -1e4]])
    want = np.sign(x.numpy()) * np.log(1 + np.abs(x.numpy()))
    np.testing.assert_allclose(inputs_of(encoder(VECTOR), {"image": x}).numpy(), want, rtol=1e-6)


def test_tokens_are_three_dense_layers_of_the_input():
    made, x = encoder(VECTOR), torch.randn(7, 5, generator=rng())
    squashed = (x.sign() * torch.log1p(x.abs())).double()
    want = ref.mlp(ref.under(ref.doubles(made), "mlp"), squashed)
    assert made.out == TINY.units and len(made.mlp.layers) == 3
    torch.testing.assert_close(made({"image": x}, F32).double(), want, rtol=1e-5, atol=1e-5)


def test_image_tokens_are_four_halvings_of_convolution_norm_and_silu():
    made = encoder(RGB)
    image = torch.randint(256, (2, 64, 64, 3), generator=rng(), dtype=torch.uint8)
    w = numbers(made)
    got = made({"image": image}, F32)
    assert got.shape == (2, made.out) == (2, 4 * 4 * 4 * TINY.depth)
    x = image[1].numpy().transpose(2, 0, 1) / 255 - 0.5
    for i in range(4):
        x = conv(x, w[f"convs.{i}.weight"], w[f"convs.{i}.bias"])
        C, H, W = x.shape
        x = x.reshape(C, H // 2, 2, W // 2, 2).max((2, 4))
        x = silu(channel_norm(x, w[f"norms.{i}.scale"]))
    np.testing.assert_allclose(got[1].detach().numpy(), x.transpose(1, 2, 0).ravel(), atol=1e-4)


def test_images_and_categories_are_encoded_side_by_side():
    made = encoder({**RGB, "direction": ObsSpec((), classes=4)})
    obs = {"image": torch.zeros(2, 64, 64, 3, dtype=torch.uint8), "direction": torch.tensor([0, 3])}
    assert made(obs, F32).shape == (2, TINY.units + 4 * 4 * 4 * TINY.depth)


def test_encoder_computes_in_the_asked_type():
    made = encoder(SYMBOLIC).bfloat16()
    obs = {k: torch.zeros(3, *s.shape, dtype=torch.uint8) for k, s in SYMBOLIC.items()}
    assert made(obs, torch.bfloat16).dtype == torch.bfloat16


# decoder


def test_outputs_have_the_shapes_of_the_observations():
    spec = {**SYMBOLIC, "vector": ObsSpec((5,), dtype="float32"), **RGB}
    outs = decoder(spec)(torch.randn(3, FEATURES, generator=rng()))
    shapes = {k: tuple(v.shape) for k, v in outs.items()}
    assert shapes == {
        "object": (3, 2, 2, 3),
        "color": (3, 2, 2, 2),
        "direction": (3, 4),
        "vector": (3, 5),
        "image": (3, 64, 64, 3),
    }
    assert outs["image"].min() >= 0 and outs["image"].max() <= 1


def test_flat_outputs_are_three_dense_layers_and_one_head_a_key():
    made, feat = decoder(SYMBOLIC), torch.randn(3, FEATURES, generator=rng())
    w = ref.doubles(made)
    hidden = ref.mlp(ref.under(w, "mlp"), feat.double())
    got = made(feat)
    for key, s in SYMBOLIC.items():
        want = (hidden @ w[f"heads.{key}.weight"].T + w[f"heads.{key}.bias"]).reshape(3, *s.shape, s.classes)
        torch.testing.assert_close(got[key].double(), want, rtol=1e-5, atol=1e-5)


def test_pixels_are_the_published_decoder():
    made, feat = decoder(RGB), torch.randn(2, FEATURES, generator=rng())
    w = numbers(made)
    got = made(feat)["image"][1].detach().numpy()
    deter, stoch = feat[1].double().numpy()[: TINY.deter], feat[1].double().numpy()[TINY.deter :]
    c = 4 * TINY.depth
    blocks = deter.reshape(8, -1)
    x0 = np.concatenate([blocks[g] @ w["from_deter.weight"][g] for g in range(8)]) + w["from_deter.bias"]
    x0 = x0.reshape(8, 4, 4, c // 8).transpose(1, 2, 0, 3).reshape(4, 4, c)  # '(g h w c) -> h w (g c)'
    hidden = stoch @ w["from_stoch.0.linear.weight"].T + w["from_stoch.0.linear.bias"]
    hidden = silu(hidden / np.sqrt((hidden**2).mean() + 1e-4) * w["from_stoch.0.norm.scale"])
    assert hidden.shape == (2 * TINY.units,)
    x1 = (hidden @ w["from_stoch.1.weight"].T + w["from_stoch.1.bias"]).reshape(4, 4, c)
    x = silu(channel_norm((x0 + x1).transpose(2, 0, 1), w["space_norm.scale"]))
    for i in range(3):
        x = conv(x.repeat(2, 1).repeat(2, 2), w[f"convs.{i}.weight"], w[f"convs.{i}.bias"])
        x = silu(channel_norm(x, w[f"norms.{i}.scale"]))
    x = conv(x.repeat(2, 1).repeat(2, 2), w["out.weight"], w["out.bias"])
    np.testing.assert_allclose(got, (1 / (1 + np.exp(-x))).transpose(1, 2, 0), atol=1e-4)


def test_category_loss_is_the_summed_negative_log_likelihood():
    logits = torch.randn(2, 2, 2, 3, generator=rng())
    index = torch.randint(3, (2, 2, 2), generator=rng(), dtype=torch.uint8)
    p = softmax(logits.double().numpy())
    want = [-sum(np.log(p[n, i, j, index[n, i, j]]) for i in range(2) for j in range(2)) for n in range(2)]
    got = decoder(SYMBOLIC).losses({"object": logits}, {"object": index})["object"]
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_scalar_category_loss_has_one_value_a_row():
    logits = torch.zeros(3, 4)
    got = decoder(SYMBOLIC).losses({"direction": logits}, {"direction": torch.tensor([0, 1, 3])})
    assert got["direction"].tolist() == pytest.approx([np.log(4)] * 3)


def test_vector_loss_is_the_summed_squared_error_after_symlog():
    out = torch.tensor([[0.0, 1.0, 0.0, 0.0, 2.0]])
    target = torch.tensor([[0.0, np.e - 1, 3.0, -8.0, 0.0]], dtype=F32)
    got = decoder(VECTOR).losses({"image": out}, {"image": target})["image"].item()
    assert got == pytest.approx(np.log(4) ** 2 + np.log(9) ** 2 + 4, rel=1e-5)


def test_pixel_loss_is_the_summed_squared_error_in_unit_range():
    out = torch.full((2, 64, 64, 3), 0.5)
    target = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    target[1] = 255
    target[1, 0, 0, 0] = 51  # 0.2
    got = decoder(RGB).losses({"image": out}, {"image": target})["image"].tolist()
    n = 64 * 64 * 3
    assert got == pytest.approx([0.25 * n, 0.25 * (n - 1) + 0.09], rel=1e-5)
