"""Text as typed: values arrive as they were written, whole numbers in any usual spelling, ~ is home."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lore.base.errors import BadInput
from lore.base.files import user_path
from lore.config.command_options import PATHS, EvalOptions, ExportOptions, ImportOptions
from lore.config.compose import as_overrides, compose, compose_jobs, eval_options, plain_options
from lore.config.fields import accepts, types_of
from lore.config.options import Config
from lore.config.stored import load_stored
from lore.config.typed import as_hydra, whole_number

PARSER = OverridesParser.create()
TEXTS = [
    key for key, hint in types_of(Config).items() if accepts(hint, str) and key not in ("run.dir", "resume")
]
WHOLE = [key for key, hint in types_of(Config).items() if accepts(hint, int)]
SIGNS = st.sampled_from(list("ab1e5 .,:;=~+-_/\\'\"()[]{}$%@#!?*&|^<>é漢字"))


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(key=st.sampled_from(TEXTS), text=st.text(SIGNS, min_size=1))
def test_text_arrives_as_typed(key: str, text: str) -> None:
    hypothesis.assume("${" not in text and not text.startswith(("'", '"')))
    assert PARSER.parse_override(as_hydra([f"{key}={text}"], ())[0]).value() == text


@hypothesis.settings(max_examples=500, deadline=None)
@hypothesis.given(texts=st.lists(st.text(st.sampled_from(list("ab1e5 .:=+-_\\é漢")), min_size=1), min_size=1))
def test_texts_of_a_list_and_of_a_sweep_arrive_as_typed(texts: list[str]) -> None:
    texts = [text.strip() or "x" for text in texts]
    typed = f"[{','.join(texts)}]"
    assert PARSER.parse_override(as_hydra([f"logger.tags={typed}"], ())[0]).value() == texts
    swept = PARSER.parse_override(as_hydra([f"logger.project={','.join(texts)}"], (), sweep=True)[0])
    jobs = [swept.value()] if len(texts) == 1 else [part.text for part in swept.value().list]
    assert jobs == texts


@pytest.mark.parametrize(
    "text", ["1e5", "123", "true", "0x10", "1_000", "3.0", "nan", "off", "it's", "a=b", "a, b"]
)
def test_text_that_looks_like_something_else(text: str) -> None:
    cfg = compose([f"{key}={text}" for key in ("logger.group", "logger.project", "llm.model")])
    assert (cfg.logger.group, cfg.logger.project, cfg.llm.model) == (text, text, text)


def test_tags_that_look_like_something_else() -> None:
    assert compose(["logger.tags=[1e5, true,0x10,'a, b']"]).logger.tags == ["1e5", "true", "0x10", "a, b"]
    assert compose(["logger.tags=[]"]).logger.tags == []


def test_null_quotes_and_references_keep_their_meaning() -> None:
    assert compose(["logger.group=null"]).logger.group is None
    assert compose(["logger.group='null'"]).logger.group == "null"
    assert compose(['logger.group="a b"']).logger.group == "a b"
    assert (
        compose(["seed=7", "logger.group=run-${seed}-${env.id}"]).logger.group
        == "run-7-MiniGrid-DoorKey-5x5-v0"
    )


def test_texts_of_a_sweep() -> None:
    overrides = as_overrides(["logger.group=1e5,x,'a,b'", "size=tiny"], sweep=True)
    assert [cfg.logger.group for cfg in compose_jobs(overrides, sweep=True)] == ["1e5", "x", "a,b"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10k", 10_000),
        ("1e4", 10_000),
        ("1_000", 1000),
        ("2.5k", 2500),
        ("1M", 1_000_000),
        ("1.5e3", 1500),
        ("0", 0),
        ("-3", -3),
        ("7.0", 7),
        ("1.5", None),
        ("1e-3", None),
        ("1.0001k", None),
        ("ten", None),
        ("", None),
        ("1e999999999", None),
        ("k", None),
        ("nan", None),
        ("٣", None),
    ],
)
def test_whole_numbers_as_people_write_them(text: str, number: int | None) -> None:
    assert whole_number(text) == number


@hypothesis.given(st.integers(-(10**15), 10**15))
def test_a_whole_number_is_itself_in_every_spelling(number: int) -> None:
    assert whole_number(str(number)) == whole_number(f"{number:_}") == number
    assert whole_number(f"{number}k") == whole_number(f"{number}e3") == 1000 * number


@pytest.mark.parametrize("key", WHOLE)
def test_every_whole_number_option_reads_them(key: str) -> None:
    (override,) = as_hydra([f"{key}=3e4"], ())
    assert override == f"{key}=30000"
    assert as_hydra([f"{key}=1k,2k"], (), sweep=True) == [f"{key}=1000,2000"]
    assert as_hydra([f"{key}=range(0,10)"], (), sweep=True) == [f"{key}=range(0,10)"]


def test_steps_of_every_command_and_of_a_resumed_run(tmp_path: Path) -> None:
    assert compose(["run.steps=10k"]).run.steps == 10_000
    assert eval_options(["run=x", "episodes=1e2"]).episodes == 100
    assert plain_options(ExportOptions, "lore-record", ["steps=20k"]).steps == 20_000
    (tmp_path / "config.yaml").write_text("seed: 1")
    assert load_stored(tmp_path, ["run.steps=1e5"]).run.steps == 100_000


def test_the_home_folder_in_every_option_that_holds_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "out") == tmp_path / "x"
    for cls in (EvalOptions, ExportOptions, ImportOptions):
        paths = [key for key, hint in types_of(cls).items() if key in PATHS and accepts(hint, str)]
        options = plain_options(cls, "command", [f"{key}=~/a b=c'é" for key in paths])
        assert paths and all(getattr(options, key) == f"{tmp_path}/a b=c'é" for key in paths)
    for key in ("run.dir", "hydra.run.dir", "hydra.sweep.dir"):
        assert as_hydra([f"{key}=~/x y"], ()) == [f"{key}='{tmp_path}/x y'"]
    with pytest.raises(BadInput, match=r"^llm.cache: .*home folder"):
        user_path("~nobody-of-this-name/x", "llm.cache")
