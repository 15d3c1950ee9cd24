"""The training loop: act, remember, learn, and now and then log, evaluate and save."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lore.base.allocator import keep_freed_memory
from lore.base.lock import hold
from lore.base.rng import Streams
from lore.config.ablations import arm_name
from lore.config.options import Config
from lore.dreamer.agent import DreamerV3Agent
from lore.dreamer.guide import Moment
from lore.metrics import next_command
from lore.metrics.aggregate import MetricsAggregator
from lore.metrics.logger import RunLogger
from lore.metrics.summary import make_summary
from lore.training import build
from lore.training.acting import GuidedPolicy
from lore.training.advice_meter import AdviceMeter
from lore.training.build_adviser import build_adviser, describe_adviser, is_advised
from lore.training.checkpoint import Checkpoints, not_fitting
from lore.training.collector import Collector
from lore.training.evaluation import Evaluator, choose_rhythm, score
from lore.training.exploration_noise import ActionNoise
from lore.training.families import refuse_what_is_missing
from lore.training.old_checkpoints import upgrade
from lore.training.progress import Progress
from lore.training.signals import Stop, Stopped, stop_on_signals


def train(cfg: Config, run_dir: Path) -> str:
    """Train in a run folder, from its latest checkpoint if it holds one.

    The first signal that asks for a stop (see lore.training.signals) ends the step under way, of training or
    of an evaluation, and saves; a second Ctrl-C stops there.

    Args:
        cfg: The options of the run.
        run_dir: The run folder.

    Returns:
        "finished" or "interrupted".
    """
    keep_freed_memory()
    with (
        hold(run_dir),
        RunLogger(run_dir, cfg.logger, asdict(cfg), arm=arm_name(cfg)) as logger,
        stop_on_signals() as stop,
    ):
        trainer = Trainer(cfg, run_dir, logger, stop)
        try:
            trainer.restore()
            status = trainer.run()
        finally:
            trainer.checkpoints.wait()  # a save under way is completed whatever happened
        logger.close(status, next_command(cfg.agent.name, run_dir) if status == "finished" else "")
    return status


class Part(Protocol):
    """What a checkpoint holds the state of."""

    def state_dict(self) -> Any:
        """Return tensors, numbers, strings, lists and dicts of these, which nobody changes afterwards."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state.

        Args:
            state: What `state_dict` gave, in this run or an earlier session of it.
        """


class Trainer:
    """A run: its parts, how far it is, and one `tick` that moves it on.

    Attributes:
        parts: Everything with a state, by the name that a checkpoint has for it; the replay apart, which
            `Checkpoints` stores in pieces.
        progress: The part that counts.
        saved: env_step, updates and todo of the latest save.
    """

    def __init__(self, cfg: Config, run_dir: Path, logger: RunLogger, stop: Stop | None = None):
        """Build the parts of a run; nothing is restored yet.

        Args:
            cfg: The options of the run.
            run_dir: The run folder, which this process owns.
            logger: Writes the rows of the run.
            stop: Says whether a stop was asked for; None: it never is.

        Raises:
            BadInput: The options cannot be met.
        """
        self.cfg, self.logger, self.stop = cfg, logger, stop or Stop()
        self.progress, self.metrics, rng = Progress(), MetricsAggregator(), Streams(cfg.seed, cfg.device)
        advised = is_advised(cfg)
        family = refuse_what_is_missing(cfg.env, advised, cfg.explore.valid_noise)
        envs = build.build_envs(cfg, family)
        eval_every = choose_rhythm(cfg.run, envs.envs[0])  # of a new environment, whatever episode goes on
        spec, actions = envs.obs_spec, envs.num_actions

        gate = build.build_advised_gate(cfg)
        self.agent = build.build_agent(cfg, spec, actions, gate)
        self.learner = self.agent if isinstance(self.agent, DreamerV3Agent) else None
        self.replay = build.build_replay(cfg, spec, actions, rng["replay"]) if self.learner else None
        self.adviser = build_adviser(cfg, envs, run_dir, logger.say)
        self.guidance = build.build_guidance(cfg, gate, self.adviser, self.agent, rng["gate_dropout"])
        self.meter = AdviceMeter(gate) if gate else None

        noise = ActionNoise(cfg.explore, cfg.run.steps, envs.action_names, family.valid_actions)
        policy = GuidedPolicy(self.agent, spec, rng["act"], advice=self.guidance, noise=noise)
        skills = family.watch(envs.envs)
        self.trial = build.build_advice_trial(cfg, envs)
        adviser = cfg.llm.provider if advised else "none"
        follow_end = cfg.gate.follow_steps if gate and gate.follows else None
        self.collector = Collector(
            envs, policy, self.replay, self.metrics, skills, self.meter, self.trial, adviser, follow_end
        )
        make = partial(family.make, cfg.env, cfg.obs, remember=advised)
        self.evaluator = Evaluator(make, cfg.run.eval_episodes, cfg.seed)
        self.eval_every = eval_every

        parts: dict[str, Part | None] = {
            "agent": self.agent,
            "gate": gate,
            "adviser": self.adviser,
            "advice_meter": self.meter,
            "trial": self.trial if advised else None,
            "envs": envs,
            "collector": self.collector,
            "skills": skills,
            "metrics": self.metrics,
            "progress": self.progress,
            "rng": rng,
            "logger": logger,  # the last to be loaded: it drops rows
        }
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.checkpoints = Checkpoints(run_dir, self.replay, asdict(cfg), logger.say)
        self.saved: tuple[int, int, list[str]] | None = None

    @property
    def env_step(self) -> int:
        """Environment steps of the run, summed over its environments."""
        return self.collector.envs.transitions

    def run(self) -> str:
        """Tick to the end, or until a stop is asked for, and save.

        Returns:
            "finished" or "interrupted".
        """
        curve = self.progress.curve
        try:
            while self.env_step < self.cfg.run.steps or self.progress.todo:
                self.stop.check()
                self.tick()
            if self.eval_every and (not curve or curve[-1][0] != self.env_step):
                self.evaluate()
            status = "finished"
        except Stopped:
            status = "interrupted"
        self.save()
        self.checkpoints.wait()
        self.write_summary(status)
        return status

    def tick(self) -> None:
        """Step every environment once, and do what is then due: gradient steps, a row, an evaluation, a save.

        Raises:
            Stopped: A stop was asked for between two steps. The next tick does what is left.
        """
        todo = self.progress.todo
        if not todo:
            before = self.env_step
            self.act()
            self.logger.show_step(self.env_step, self.progress.updates)
            todo += self._due(before)
        work = {"learn": self.learn, "log": self.log, "evaluate": self.evaluate, "save": self.save}
        while todo:
            name = todo.pop(0)
            try:
                work[name]()
            except Stopped:
                todo.insert(0, name)
                raise

    def _due(self, before: int) -> list[str]:
        """What is due after a step that began at environment step `before`, in order."""
        run, now = self.cfg.run, self.env_step
        rhythm = {"log": run.log_every, "evaluate": self.eval_every, "save": run.save_every}
        return [
            "learn",
            *(name for name, every in rhythm.items() if every and now // every > before // every),
        ]

    def act(self) -> None:
        """Step every environment once, and tell of the episodes that ended."""
        episodes, said = self.collector.step()
        for text in said:
            self.logger.say(text)
        for episode in episodes:
            self.logger.write_episode(episode)
            self.progress.add_episode(episode)
            if self.adviser:
                self.adviser.end_episode(episode.success, self.env_step)
            self.metrics.add({"episode/return": episode.return_, "episode/length": episode.length})

    def learn(self) -> None:
        """Take gradient steps until train_ratio replayed steps have been trained on per environment step.

        Raises:
            Stopped: A stop was asked for between two gradient steps.
        """
        if self.learner is None or self.replay is None:
            return
        agent, progress = self.cfg.agent, self.progress
        ready = self.env_step - self.cfg.run.prefill
        due = int(max(0, ready) * agent.train_ratio / (agent.batch_size * agent.seq_len))
        self.learner.actor_learns = self.env_step >= self.cfg.explore.actor_warmup
        self._set_guide()
        while progress.updates < due:
            self.stop.check()
            batch = self.replay.sample(agent.batch_size, agent.seq_len, self.cfg.replay.success_bias)
            self.metrics.add({"replay/success_share": batch.success.any(1).float().mean()})
            metrics, latent = self.learner.update(batch, report=progress.report_due)
            progress.report_due = False
            self.replay.refresh(batch.index, latent)
            self.metrics.add(metrics)
            progress.updates += 1

    def _set_guide(self) -> None:
        """Tell who guides learning how far the run is, and how far advice is to be trusted."""
        guide = self.learner.guide if self.learner else None
        if guide is None or self.meter is None:
            return
        heard = self.meter.taught > 0  # a network that nobody has taught has nothing to teach
        guide.now = Moment(self.env_step, self.trial.trust if heard else 0.0, self.trial.unaided_success)

    def log(self) -> None:
        """Write a row of metrics.jsonl: what happened since the row before."""
        row: dict[str, Any] = self.metrics.result()
        row["gradient_steps"] = self.progress.updates
        row |= self.progress.success_row()
        if self.adviser and self.meter:
            row |= self.meter.result() | self.adviser.metrics() | self.trial.metrics()
        row |= self.collector.skills.result()
        self.progress.report_due = True
        row["time/wall_s"] = self.progress.total_wall_s
        self.logger.write_metrics(self.env_step, row)

    def evaluate(self) -> None:
        """Play held-out episodes with advice off, and write the summary of the run so far.

        Raises:
            Stopped: A stop was asked for between two of their steps; nothing of the evaluation then stays.
        """
        started, run, progress, advice = time.monotonic(), self.cfg.run, self.progress, None
        if self.guidance and self.adviser and run.eval_advised:
            reader = self.adviser.make_reader(self.evaluator.episodes)
            advice = replace(self.guidance, adviser=reader, rng=None)
        play = partial(self.evaluator.run, self.agent, self.env_step, between=self._between)
        sampled = score(play(), progress.layouts)
        greedy = score(play(greedy=True)).success if run.eval_greedy else None
        advised = score(play(advice=advice)).success if advice else None
        progress.greedy, progress.advised = greedy, advised
        progress.curve.append([self.env_step, sampled.success])
        values = sampled.row() | ({} if advised is None else {"eval/success_advised": advised})
        values["time/eval_s"] = time.monotonic() - started
        self.logger.write_evaluation(self.env_step, sampled.success, greedy, values)
        self.write_summary("running")

    def _between(self, over: int, episodes: int) -> None:
        """Called between two steps of an evaluation of which `over` of `episodes` have ended."""
        self.stop.check()
        self.logger.show_evaluation(over, episodes)

    def write_summary(self, status: str) -> None:
        """Write summary.json.

        Args:
            status: running, finished, failed or interrupted.
        """
        cfg, progress = self.cfg, self.progress
        advice, adviser, trial = {}, None, None
        if self.adviser and self.meter:
            advice = self.meter.totals() | self.adviser.metrics()
            adviser = describe_adviser(cfg.llm, self.adviser)
            trial = self.trial.summary() or None
        self.logger.write_summary(
            make_summary(
                env_id=cfg.env.id,
                arm=arm_name(cfg),
                seed=cfg.seed,
                timeout=cfg.env.timeout,
                clock=cfg.env.clock,
                teach=build.teacher_name(cfg),
                env_steps=self.env_step,
                gradient_steps=progress.updates,
                wall_s=progress.total_wall_s,
                status=status,
                eval_curve=progress.curve,
                eval_success_greedy=progress.greedy,
                eval_success_advised=progress.advised,
                adviser=adviser,
                trial=trial,
                advice=advice,
                alerts=self.logger.alerts,
            )
        )

    def save(self) -> None:
        """Save unless this state is the latest save. One in the middle of this step is replaced."""
        if self.saved != self._now():
            self.checkpoints.save(self.env_step, self.state_dict())
            self.saved = self._now()

    def restore(self) -> None:
        """Go on from the latest checkpoint; a run that has none starts here, with one at step 0."""
        state = self.checkpoints.load()
        if state is None:
            self.save()
            self.checkpoints.wait()  # rows without a checkpoint would be nobody's
        else:
            with not_fitting("resume", self.checkpoints.loaded):
                self.load_state_dict(state)
            self.saved = self._now()

    def _now(self) -> tuple[int, int, list[str]]:
        return self.env_step, self.progress.updates, list(self.progress.todo)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next tick depends on, but for the replay: name of a part -> its state."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of this version or an older one.

        Args:
            state: Name of a part -> its state.

        Raises:
            ValueError: The stored run and this configuration do not fit.
        """
        state = upgrade(state)
        missing = self.parts.keys() - state.keys()
        if missing:
            raise ValueError(
                f"the checkpoint has no {', '.join(sorted(missing))}; config.yaml is of another run"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
