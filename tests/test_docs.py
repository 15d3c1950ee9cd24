"""docs/metrics.md names every metric a run logs, and no other."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests import runs
from tests.metrics.sinks.test_wandb_sink import history

from lore.base.errors import BadInput
from lore.config.compose import compose
from lore.training.trainer import train

ROOT = Path(__file__).parents[1]


def logged_in(folder: Path) -> set[str]:
    """Names in metrics.jsonl, those of a family as docs/metrics.md writes them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    names = {re.sub(r"^(llm/failure)/.*", r"\1/KIND", name) for name in names}
    return {re.sub(r"^(llm/(?:outcome|trigger|plan|source))/.*", r"\1/NAME", name) for name in names}


def numbers_in(folder: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, numbers only: W&B gets no nulls, and shows a vector as a histogram."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if isinstance(v, int | float)} for row in rows]


def sent_to_wandb(folder: Path) -> list[dict[str, float]]:
    """The same rows, read back from W&B's own file by W&B."""
    (segment,) = (folder / "wandb").glob("offline-run-*")
    keep = re.compile(r"(?!_)[^.]+$")  # not its own fields, nor the parts of a histogram
    return [
        {k: v for k, v in row.items() if keep.match(k) and isinstance(v, int | float)}
        for row in history(segment)
    ]


def test_every_logged_metric_has_a_line_and_every_line_a_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key-of-nobody")
    overrides = ["+preset=debug", "agent.critic_ensemble=2", "agent.disagreement_ensemble=2", "env=empty5"]
    cfg = compose([*overrides, "logger=quiet", "env.max_steps=20", "run.steps=120"])
    train(cfg, tmp_path)
    advised = ["agent=prior", "llm.cache=null", "logger=quiet", "run.steps=600", "run.eval_episodes=2"]
    logged = logged_in(tmp_path)
    looks_around = ["llm=scripted", "llm.competence=0", "llm.failure=explore"]  # until all is explored
    for name, adviser in {"plans": looks_around, "no server": runs.DEAD}.items():
        folder = tmp_path / name
        folder.mkdir()
        train(compose([*advised, *adviser, "env.max_steps=60"]), folder)
        logged |= logged_in(folder)
    folder = tmp_path / "everything"
    folder.mkdir()
    everything = ["prior_net.enabled=true", "gate.mix_in_imagination=true", "gate.temperature=match"]
    quiet = ["llm.cache=null", "logger=offline", "logger.terminal=off"]
    train(compose(["+preset=debug", *everything, *quiet]), folder)
    assert sent_to_wandb(folder) == numbers_in(folder)
    logged |= logged_in(folder)
    for arm in ("G", "G_trusting", "kickstart", "clone"):
        folder = tmp_path / arm
        folder.mkdir()
        small = ["+preset=debug", "env=empty5", "env.max_steps=20", "logger=quiet", "llm.cache=null"]
        veto = ["gate.veto=true"] if arm == "G" else []
        train(compose([f"+ablation={arm}", *small, *veto, "run.eval_every=0"]), folder)
        logged |= logged_in(folder)
    table = (
        (ROOT / "docs" / "metrics.md")
        .read_text(encoding="utf-8")
        .split("## Names in metrics.jsonl")[1]
        .split("\n## ")[0]
    )
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    documented = {name for line in lines for name in re.findall(r"`([^`]+)`", line)}
    assert logged == documented


def test_what_the_coverage_page_names_exists() -> None:
    """Every path, and behind a colon a part of the name of one of that file's tests."""
    page = (ROOT / "docs" / "spec-coverage.md").read_text(encoding="utf-8")
    cells = [line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| ")]
    shown = [cell for cell in cells if cell not in ("shown by", "---")]
    assert len(shown) > 50 and all(shown)
    for cell in shown:
        if cell.startswith(("*open*", "by hand")):
            continue
        for part in re.sub(r" \([^)]*\)", "", cell).split("; "):
            path, _, names = part.partition(": ")
            found = [folder / path for folder in (ROOT / "tests", ROOT / "docs") if (folder / path).exists()]
            assert found, f"{part}: no such file"
            for name in filter(None, names.split(", ")):
                assert re.search(rf"def test_\w*{re.escape(name)}\w*\(", found[0].read_text()), (
                    f"{part}: no {name}"
                )


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "adding.md"],  # tests/test_adding.py makes the files of that page
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """A path in code that begins with a folder of the repository; words in capitals stand for something."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|tests|scripts|docs|examples|notebooks|conf)/[\w./-]*)`", text)
    missing = [path for path in paths if not re.search("[A-Z]{3}", path) and not (ROOT / path).exists()]
    assert not missing


PLUGINS = ("my_package", "my_lab", "fading", "compass", "rush")  # of the user, or of examples/


def overrides_of(page: Path) -> dict[str, list[str]]:
    """Every `lore-train KEY=VALUE` of a page that starts a run -> its overrides; of a sweep, one job."""
    command = r"^ {4}(?:\S+=\S+ )*(?:lore-train|scripts/train) (.+)$"
    lines = re.findall(command, page.read_text(encoding="utf-8"), re.MULTILINE)
    out = {}
    for line in (line.partition(" #")[0].strip() for line in lines):
        words = [word for word in shlex.split(line) if word != "-m" and not word.startswith("hydra")]
        new = not any(word.startswith(("resume=", "--")) or word in ("KEY=VALUE", "...") for word in words)
        if new and not any(name in line for name in PLUGINS):
            out[line] = [re.sub(r"=(?:range\()?([^,]+),.*", r"=\1", word) for word in words]
    return out


def test_every_command_of_a_page_composes() -> None:
    commands = {line: words for page in PAGES for line, words in overrides_of(page).items()}
    assert len(commands) > 20
    stands_for = {"ENV": "doorkey5", "ID": "BabyAI-GoToLocal-v0", "K": "0"}
    for line, words in commands.items():
        values = [re.sub(r"=(ENV|ID|K)$", lambda word: "=" + stands_for[word[1]], word) for word in words]
        try:
            compose(values)
        except BadInput as error:
            pytest.fail(f"lore-train {line}: {error}")


def test_the_comparison_on_its_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five seeds in which E is better by 0.2, give or take 0.1."""
    page = (ROOT / "docs" / "comparing-runs.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert '"multirun/mine"' in program
    for seed in range(5):
        for arm, auc in (("A", 0.5 + seed / 50), ("E", 0.7 + seed / 50 + (seed - 2) / 20)):
            folder = tmp_path / f"{seed}_{arm}"
            folder.mkdir()
            values = {"arm": arm, "seed": seed, "auc": auc, "status": "finished"}
            (folder / "summary.json").write_text(json.dumps(values))
    exec(program.replace("multirun/mine", str(tmp_path)), {})
    printed = capsys.readouterr().out
    mean, low, high = (float(number) for number in re.findall(r"[+-]\d\.\d+", printed))
    assert mean == pytest.approx(0.2) and 0.1 <= low < 0.2 < high <= 0.3 and "5 seeds" in printed


def test_the_messages_on_the_page_of_troubles_are_said_somewhere() -> None:
    """Each part of a message between dots and colons, in the source or the scripts; RUN is a folder there."""
    files = [
        *(ROOT / "src").rglob("*.py"),
        *(path for path in (ROOT / "scripts").iterdir() if path.is_file()),
    ]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    parts = [part.strip() for row in rows for part in re.split(r"\.\.\.|: |, none|RUN", row)]
    missing = [part for part in parts if " " in part and part not in source]
    assert not missing


def commands(page: str) -> list[str]:
    """The indented commands of a README without their comments."""
    lines = [line.split("  #")[0].split(" # ")[0].strip() for line in page.splitlines()]
    return [
        command
        for command, line in zip(lines, page.splitlines(), strict=True)
        if re.match(r"    (scripts/|lore-|PIP_|pip )", line)
    ]


def names(page: str) -> dict[str, set[str]]:
    """Row of a table, by its first cell -> the names in its second, where that lists names."""
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    out = {row[1].strip(): set(re.findall(r"`([\w-]+)`", row[2])) for row in rows}
    return {first: second if first.strip("`").endswith("=") else set() for first, second in out.items()}


def test_the_two_readmes_say_the_same() -> None:
    """The same commands in the same order, the same groups with the same names, files and links."""
    english, japanese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))
    assert commands(english) == commands(japanese) and len(commands(english)) > 20
    assert names(english) == names(japanese) and len(names(english)) > 15
    links = [set(re.findall(r"\]\(([^)]+)\)", page)) for page in (english, japanese)]
    assert links[0] - {"README.ja.md"} == links[1] - {"README.md"}


def test_the_groups_in_the_readme_are_those_of_the_configs() -> None:
    rows = names((ROOT / "README.md").read_text(encoding="utf-8"))
    for first, listed in rows.items():
        folder = ROOT / "conf" / first.strip("`=+")
        if folder.is_dir():
            assert listed == {path.stem for path in folder.glob("*.yaml")}, first
