import hashlib

import pytest
import torch

from lore.base.rng import Streams, generator, seed_of


def draw(g, n=4):
    return torch.rand(n, generator=g).tolist()


def test_seed_is_the_head_of_the_sha256_of_seed_and_name():
    # printf '7/replay' | sha256sum -> 8f31b4350e19952b..., its first 16 digits shifted right by one bit
    assert seed_of(7, "replay") == 5159113180622670485


def test_seeds_are_63_bit_and_differ_by_name_and_by_seed():
    seeds = {seed_of(s, n) for s in range(50) for n in ("a", "b", "init/rssm", "init/actor")}
    assert len(seeds) == 200 and all(0 <= s < 2**63 for s in seeds)


def test_seed_and_name_cannot_run_into_each_other():
    assert seed_of(1, "1/a") != seed_of(11, "a") and seed_of(1, "2") != seed_of(12, "")


def test_generator_starts_its_stream_anew_each_time():
    assert draw(generator(0, "x")) == draw(generator(0, "x"))
    assert draw(generator(0, "x")) != draw(generator(0, "y"))
    assert draw(generator(0, "x")) != draw(generator(1, "x"))


def test_generator_is_torch_seeded_with_the_seed_of_the_name():
    digest = hashlib.sha256(b"3/x").digest()
    seeded = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)
    assert draw(generator(3, "x")) == draw(seeded)


def test_a_stream_goes_on_where_it_stood():
    streams, whole = Streams(0), generator(0, "x")
    assert draw(streams["x"]) + draw(streams["x"]) == draw(whole) + draw(whole)


def test_drawing_from_one_stream_moves_no_other():
    plain, mixed = Streams(0), Streams(0)
    want = [draw(plain["a"]), draw(plain["a"])]
    got = [draw(mixed["a"])]
    draw(mixed["b"], 100)
    assert [*got, draw(mixed["a"])] == want


def test_order_in_which_streams_are_made_does_not_matter():
    one, two = Streams(0), Streams(0)
    a, b = draw(one["a"]), draw(one["b"])
    assert (draw(two["b"]), draw(two["a"])) == (b, a)


def test_streams_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    draw(Streams(0)["a"])
    assert torch.equal(before, torch.get_rng_state())


def test_loaded_streams_go_on_as_the_saved_ones(tmp_path):
    streams = Streams(0)
    draw(streams["a"])
    draw(streams["b"], 7)
    torch.save(streams.state_dict(), tmp_path / "rng.pt")
    want = {n: draw(streams[n]) for n in ("a", "b")}
    loaded = Streams(0)
    draw(loaded["a"], 99)
    loaded.load_state_dict(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert {n: draw(loaded[n]) for n in ("a", "b")} == want


def test_a_stream_not_in_the_loaded_state_starts_anew():
    saved = Streams(0)
    draw(saved["a"])
    loaded = Streams(0)
    draw(loaded["b"])
    loaded.load_state_dict(saved.state_dict())
    assert draw(loaded["b"]) == draw(generator(0, "b"))


@pytest.mark.parametrize("n", [1, 5])
def test_saved_state_is_a_snapshot(n):
    streams = Streams(0)
    draw(streams["a"])
    state = streams.state_dict()
    want = draw(streams["a"], n)
    streams.load_state_dict(state)
    assert draw(streams["a"], n) == want
