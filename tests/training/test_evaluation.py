"""lore-eval: the numbers it prints, that they repeat, and the one line that answers bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from tests.counting import CountingEnv

from lore.cli.eval import main as eval_main
from lore.cli.guard import BAD_INPUT, DONE
from lore.config.compose import compose, to_yaml
from lore.config.options import Config
from lore.config.stored import load_to_evaluate
from lore.envs import episode_seed, make_env
from lore.studies import films
from lore.training.evaluation import USUAL_EVERY, Evaluator, choose_rhythm, wilson_interval
from lore.training.random_agent import RandomAgent
from lore.training.trainer import train

KEYS = (
    *("env_id", "run", "checkpoint", "env_step", "policy", "episodes", "success", "success_interval"),
    *("return", "length", "unseen_layouts", "videos"),
)


def trained(folder: Path, *overrides: str) -> Path:
    shape = ["+preset=debug", "env.max_steps=30", "run.eval_episodes=10", f"run.dir={folder}"]
    cfg = compose([*shape, *overrides])
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(cfg))
    assert train(cfg, folder) == "finished"
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run in a room that even an untrained agent sometimes solves; steps 100 and 200 are kept."""
    return trained(tmp_path_factory.mktemp("eval") / "run", "env=empty5")


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("eval") / "random", "agent=random", "env=empty5")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be spoiled."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def last_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert eval_main(arguments) == DONE, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert eval_main(arguments) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("lore-eval: ")


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 100), (9, 100), (50, 100), (995, 1000)]
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_wilson_interval(successes: int, trials: int, confidence: float) -> None:
    theirs = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert wilson_interval(successes, trials, confidence) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_the_line_repeats_the_evaluations_of_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((run / "summary.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = {row["env_step"]: row for row in rows if "eval/return" in row}
    assert sorted(evaluated) == [100, 200]
    for name, step in (("latest", 200), ("step-000000100", 100)):
        line = last_line(capsys, f"run={run}", f"checkpoint={name}", "episodes=10")
        assert tuple(line) == KEYS
        assert (line["env_step"], line["checkpoint"]) == (step, f"step-{step:09d}")
        assert [step, line["success"]] in summary["eval_curve"]
        assert line["return"] == evaluated[step]["eval/return"]
        assert line["length"] == evaluated[step]["eval/length"]
        assert line["unseen_layouts"] == evaluated[step]["eval/unseen_layouts"]
        assert line["success_interval"] == list(wilson_interval(round(10 * line["success"]), 10))
        assert line["videos"] == []
    greedy = last_line(capsys, f"run={run}", "episodes=10", "policy=greedy")
    assert greedy["success"] == summary["eval_success_greedy"]


def test_a_run_from_before_the_clock_is_evaluated_as_ever(
    copy: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copy / "config.yaml").read_text()
    older = text.replace("  timeout: truncate\n", "").replace("  clock: false\n", "")
    assert len(text.splitlines()) - len(older.splitlines()) == 2
    (copy / "config.yaml").write_text(older)
    lines = [last_line(capsys, f"run={folder}", "episodes=5") for folder in (copy, run)]
    assert lines[0] == lines[1] | {"run": str(copy)}


def test_the_same_options_give_the_same_line_in_every_process(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"run={run}", "episodes=20", "seed=3"]
    here = last_line(capsys, *arguments)
    command = "import sys; from lore.cli.eval import main; sys.exit(main())"
    there = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        env=os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(there.stdout.splitlines()[-1]) == here
    assert last_line(capsys, *arguments[:-1], "seed=4")["length"] != here["length"]


def test_fewer_episodes_are_the_first_of_the_held_out_ones() -> None:
    cfg = compose(["env=doorkey5", "env.max_steps=3"])
    agent = RandomAgent(7)

    def played(count: int, seed: int) -> list[tuple[int, str]]:
        episodes = Evaluator(lambda: make_env(cfg.env, cfg.obs), count, seed).run(agent, 0)
        return [(e.seed, e.layout) for e in episodes]

    many = played(20, seed=0)
    assert [seed for seed, _ in many] == [episode_seed("eval", 0, 1, 0, i) for i in range(20)]
    assert played(10, seed=1) == many[:10]


@pytest.mark.parametrize(
    ("options", "every"),
    [
        (["env=doorkey5"], 500),
        (["env=babyai_unlockpickup"], 500),
        (["env=doorkey8"], 3500),  # 100 episodes of 640 steps
        (["env=unlock"], 1500),
        (["env=doorkey16"], 13_000),
        (["env=doorkey8", "run.eval_episodes=20"], 500),
        (["env=doorkey5", "run.eval_episodes=300"], 4000),
        (["env=doorkey8", "env.max_steps=100"], 500),
        (["env=doorkey8", "run.eval_every=500"], 500),
        (["env=doorkey8", "run.eval_every=0"], 0),
    ],
)
def test_long_tasks_are_evaluated_less_often(options: list[str], every: int) -> None:
    cfgs = [compose([*options, *arm]) for arm in ([], ["+ablation=A"], ["env.clock=true"])]
    assert [choose_rhythm(cfg.run, make_env(cfg.env, cfg.obs)) for cfg in cfgs] == [every] * 3


def test_a_world_without_a_known_limit_is_evaluated_as_usual() -> None:
    assert choose_rhythm(Config().run, CountingEnv(length=10**6)) == USUAL_EVERY == 500


def test_random_agent(random_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = last_line(capsys, f"run={random_run}", "episodes=10")
    assert line["episodes"] == 10
    assert refused(capsys, f"run={random_run}", "episodes=1", "video=true").startswith("video: agent=random ")
    assert not (random_run / "eval").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_films(run: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = last_line(capsys, f"run={run}", "episodes=2")
    out = tmp_path / "a b" / "films"
    line = last_line(capsys, f"run={run}", "episodes=2", "video=true", f"video_format={ending}", f"out={out}")
    stem = out / "step-000000200-sampled"
    names = ["episode0", "imagined0", "episode1", "imagined1"]
    assert line["videos"] == [f"{stem}-{name}.{ending}" for name in names]
    assert line | {"videos": []} == plain  # filming changes nothing
    for path in line["videos"]:
        with imageio.get_reader(path) as film:
            frames = [np.asarray(frame) for frame in film]
        assert len(frames) > 2
        assert all(frame.shape == frames[0].shape for frame in frames)
        assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    for i in (0, 1):
        assert Path(line["videos"][2 * i]).read_bytes() != Path(line["videos"][2 * i + 1]).read_bytes()


def test_films_lie_in_the_run_folder_and_are_four_at_most(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "write_film", lambda path, frames: path.touch())
    line = last_line(capsys, f"run={copy}", "episodes=6", "video=true", "video_format=gif")
    assert len(line["videos"]) == 8
    assert sorted(line["videos"]) == sorted(str(p) for p in (copy / "eval").iterdir())


def test_checkpoints_that_cannot_be_used(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, f"run={copy}", "checkpoint=step-000000500")
    assert line.startswith("checkpoint: no checkpoint 'step-000000500'")
    assert line.endswith("there: step-000000100, step-000000200")

    state = copy / "checkpoints" / "step-000000200" / "state.pt"
    whole = state.read_bytes()
    for damaged in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        state.write_bytes(damaged)
        line = refused(capsys, f"run={copy}")
        assert line.startswith(
            f"checkpoint: {state}: differs from its checksum; use checkpoint=step-000000100"
        )
    state.unlink()
    assert refused(capsys, f"run={copy}").startswith(f"checkpoint: {state}: No such file")
    assert last_line(capsys, f"run={copy}", "checkpoint=step-000000100", "episodes=1")["env_step"] == 100

    other = compose(["+preset=debug", "env=empty5", "size.units=24"])
    (copy / "config.yaml").write_text(to_yaml(other))
    line = refused(capsys, f"run={copy}", "checkpoint=step-000000100")
    assert "step-000000100 was made under" in line


def test_folders_that_cannot_be_used(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert refused(capsys, f"run={copy}", "video=true", f"out={tmp_path / 'file'}").startswith("out: ")
    assert refused(capsys, f"run={tmp_path}").startswith("run: ")
    (copy / "config.yaml").write_text("[")
    assert refused(capsys, f"run={copy}").startswith("run: cannot read ")


def test_a_missing_gpu_is_said(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg: Config = load_to_evaluate(copy)
    cfg.device = "cuda"
    (copy / "config.yaml").write_text(to_yaml(cfg))
    assert eval_main([f"run={copy}", "episodes=1"]) == DONE
    assert "evaluating on the cpu" in capsys.readouterr().out


def test_people_on_a_terminal_get_a_table_and_json_stays_last(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert eval_main([f"run={run}", "episodes=3"]) == DONE
    *table, last = capsys.readouterr().out.splitlines()
    line = json.loads(last)
    said = " ".join(" ".join(table).split())
    assert f"{line['env_id']}, {line['checkpoint']}, sampled policy" in said
    assert f"success │ {line['success']:.1%} (95 % interval" in said
    assert f"length, mean │ {line['length']:.1f} steps" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_result_that_nobody_received_is_a_failure(run: Path) -> None:
    code = f"import sys, lore.cli.eval as c; sys.exit(c.main(['run={run}', 'episodes=1']))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lore-eval: its output could not be written: ")
