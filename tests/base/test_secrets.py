"""A secret in a text is masked, in an option refused; what holds none stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lore.base import secrets
from lore.base.errors import BadInput
from lore.base.secrets import MASK, check_address, keep_secret, mask, mask_values, refuse_secret_arguments

WORD = st.text("abcXYZ019-_", min_size=1, max_size=12)
SECRET = st.builds(lambda word: f"MARKED{word}", WORD).filter(lambda s: len(s) >= secrets.SHORTEST)
KEY = st.builds(lambda word: f"sk-ant-MARKED{word}", WORD) | st.builds(
    lambda word: f"MARKED0{word}".ljust(30, "x"), WORD
)
HOST = st.sampled_from(["localhost", "127.0.0.1:8080", "api.example.com", "[::1]:80"])
SCHEME = st.sampled_from(["http://", "https://", "socks5://", "ftp://", "HTTPS://"])


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    secrets._variables.clear()
    yield
    secrets._variables.clear()


def addresses() -> st.SearchStrategy[str]:
    """Addresses with a secret in each place that can hold one."""
    return st.one_of(
        st.builds("{}{}:{}@{}/x".format, SCHEME, WORD, SECRET, HOST),
        st.builds("{}{}@{}".format, SCHEME, SECRET, HOST),
        st.builds("{}{}/a/{}/b".format, SCHEME, HOST, KEY),
        st.builds("{}{}/a?key={}".format, SCHEME, HOST, SECRET),
        st.builds("{}{}?{}".format, SCHEME, HOST, SECRET),
        st.builds("{}{}#{}".format, SCHEME, HOST, SECRET),
        st.builds("{}:{}@localhost".format, WORD, SECRET),
    )


@settings(max_examples=300, deadline=None)
@given(address=addresses(), before=st.sampled_from(["", "cannot reach ", "llm.base_url=", "'"]))
def test_no_part_of_an_address_shows_a_secret(address: str, before: str) -> None:
    shown = mask(f"{before}{address} and more")
    assert "MARKED" not in shown and MASK in shown
    assert shown.startswith(before) and shown.endswith(" and more")
    for key in ("llm.base_url", "+logger.tags", "llm.model"):
        with pytest.raises(BadInput) as caught:
            refuse_secret_arguments(["seed=1", f"{key}={address}"])
        assert "MARKED" not in str(caught.value) and caught.value.key == key.lstrip("+")
    with pytest.raises(BadInput) as caught:
        check_address("llm.base_url", address)
    assert "MARKED" not in str(caught.value)
    with pytest.raises(BadInput) as caught:
        refuse_secret_arguments([address])  # no key at all
    assert "MARKED" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=8, max_size=30))
def test_a_value_of_the_environment_is_masked_however_json_writes_it(value: str) -> None:
    value = f"MARKED{value}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOMEBODYS_API_KEY", f" {value}\n")
        ascii_only = "".join(f"\\u{ord(c):04X}" for c in value if ord(c) < 65536)
        forms = [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
        if len(ascii_only) == 6 * len(value):
            forms.append(ascii_only)
        if any(ord(c) > 65535 for c in value):  # json.dumps writes these as two escapes
            forms.remove(json.dumps(value)[1:-1])
        for form in forms:
            assert mask_values(f"before {form} after") == f"before {MASK} after"
            assert mask(f"before {form} after") == f"before {MASK} after"


@pytest.mark.parametrize(
    ("name", "value", "kept", "hidden"),
    [
        ("WANDB_API_KEY", "MARKED-0123", "", True),
        ("GITHUB_TOKEN", "MARKED-0123", "", True),
        ("db_password", "MARKED-0123", "", True),
        ("MY_VARIABLE", "MARKED-0123", "MY_VARIABLE", True),
        ("MY_VARIABLE", "MARKED-0123", "", False),
        ("API_KEY", "MARKED", "", False),  # too short: it stands in many harmless words
        ("HTTPS_PROXY", "http://me:MARKED-0123@host", "", True),
        ("all_proxy", "me:MARKED-0123@", "", True),
        ("https_proxy", "http://me:MARKED-0123@[bad", "", True),
        ("HTTPS_PROXY", "http://MARKED-0123:80", "", False),
    ],
)
def test_which_values_are_secrets(
    name: str, value: str, kept: str, hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    if kept:
        keep_secret(kept)
    said = "MARKED" if "MARKED-" not in value else "MARKED-0123"
    assert ("MARKED" not in mask(f"it is {said}.")) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lore-train seed=1 env=doorkey5 run.dir=/a/b_c/2026-11-27/09-00-00",
        "http://127.0.0.1:8080",
        "https://api.anthropic.com/v1/messages",
        "see https://platform.claude.com/docs/en/models/haiku-5-5/overview, and more",
        "git@github.com:owner/name.git",
        "llm.base_url=http://[::1]:80/a.b/c_d",
        "12:30 someone@example.org",
        "env.id=package:Name-v0",
        "a=b:c d@e",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert mask(text) == mask_values(text) == text
    refuse_secret_arguments(text.split())


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:80",
        "//h",
        "ftp://h",
        "http://",
        "http:/h",
        "http://a b",
        "http://h:123456",
    ],
)
def test_what_is_no_address_of_a_server(url: str) -> None:
    with pytest.raises(BadInput, match=r"llm\.base_url: must be http://HOST"):
        check_address("llm.base_url", url)


@pytest.mark.parametrize(
    "url", ["http://h", "https://h/", "http://127.0.0.1:80/v1/x", "https://[::1]:8080/a-b"]
)
def test_what_is_an_address_of_a_server(url: str) -> None:
    check_address("llm.base_url", url)
