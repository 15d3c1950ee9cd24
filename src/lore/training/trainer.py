"""The training loop: act, remember, learn, and now and then log, evaluate and save."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from lore.base.allocator import keep_freed_memory
from lore.base.rng import generator
from lore.base.types import FLAGS
from lore.config.ablations import arm_name
from lore.config.options import Config
from lore.dreamer.agent import DreamerV3Agent
from lore.envs import MiniGridAdapter, SkillMeter, make_env, make_vec
from lore.llm.asking.controller import LLMController
from lore.metrics import next_command
from lore.metrics.aggregate import MetricsAggregator
from lore.metrics.logger import RunLogger
from lore.metrics.sinks.terminal_view import WINDOW
from lore.metrics.summary import make_summary
from lore.nn.distributions import one_hot
from lore.training.acting import Decision, Guidance, GuidedPolicy
from lore.training.advice_meter import GuidanceMeter
from lore.training.build import build_advised_gate, build_adviser, build_agent, build_replay, is_advised
from lore.training.checkpoint import Checkpoints
from lore.training.evaluation import Evaluator, score
from lore.training.exploration_noise import ActionNoise
from lore.training.signals import Stop, Stopped, stop_on_signals


def train(cfg: Config, run_dir: Path) -> str:
    """Train in `run_dir`, from its latest checkpoint if it holds one. Returns "finished" or "interrupted".

    The first signal that asks for a stop (see lore.training.signals) ends the step under way, of training or
    of an evaluation, and saves; a second Ctrl-C stops there.
    """
    keep_freed_memory()
    with RunLogger(run_dir, cfg.logger, asdict(cfg), arm=arm_name(cfg)) as logger, stop_on_signals() as stop:
        trainer = Trainer(cfg, run_dir, logger, stop)
        try:
            trainer.restore()
            status = trainer.run()
        finally:
            trainer.checkpoints.wait()  # a save under way is completed whatever happened
        logger.close(status, next_command(cfg.agent.name, run_dir) if status == "finished" else "")
    return status


class Trainer:
    """Everything that takes part in a run, and one `tick` that moves it on.

    todo: what is left of a tick that a stop has cut short; a resumed run begins with it.
    """

    def __init__(self, cfg: Config, run_dir: Path, logger: RunLogger, stop: Stop | None = None):
        self.cfg, self.logger, self.stop = cfg, logger, stop or Stop()
        self.todo: list[str] = []
        advised = is_advised(cfg)
        self.remembers = advised or cfg.explore.valid_noise
        self.envs = make_vec(cfg.env, cfg.obs, cfg.run.envs, cfg.seed, split="train", remember=self.remembers)
        self.spec = self.envs.obs_spec
        self.agent = build_agent(cfg, self.spec, self.envs.num_actions)
        self.learner = self.agent if isinstance(self.agent, DreamerV3Agent) else None
        self.replay = build_replay(cfg, self.spec, self.envs.num_actions) if self.learner else None
        self.adviser = build_adviser(cfg, self.envs, run_dir, logger.say)
        self.gate = build_advised_gate(cfg, self.agent)
        self.guidance = GuidanceMeter(self.gate) if self.gate else None
        self.envs.arms = [cfg.llm.provider if advised else "none"] * cfg.run.envs
        self.dropout = generator(cfg.seed, "gate_dropout", cfg.device)
        self.policy = GuidedPolicy(
            self.agent,
            self.spec,
            generator(cfg.seed, "act", cfg.device),
            advice=self.advice(self.adviser, self.dropout),
            noise=ActionNoise(cfg.explore, cfg.run.steps, self.envs.action_names),
        )
        make = partial(make_env, cfg.env, cfg.obs, remember=advised)
        self.evaluator = Evaluator(make, cfg.run.eval_episodes, cfg.seed)
        self.skills = SkillMeter(cast(list[MiniGridAdapter], self.envs.envs))
        self.checkpoints = Checkpoints(run_dir, self.replay)
        self.metrics = MetricsAggregator()
        self.carry = self.agent.initial(cfg.run.envs)
        self.obs = self.envs.reset()
        self.updates = 0
        self.report_due = True  # the next gradient step measures the world model's predictions: one a row
        self.curve: list[list[float]] = []
        self.greedy: float | None = None
        self.advised: float | None = None
        self.window: deque[bool] = deque(maxlen=WINDOW)
        self.episodes = self.successes = 0
        self.layouts: set[str] = set()
        self.saved: tuple[int, int, list[str]] | None = None  # env_step, updates and todo of the latest save
        self.wall_before, self.started = 0.0, time.monotonic()

    @property
    def env_step(self) -> int:
        return self.envs.transitions

    @property
    def wall_s(self) -> float:
        return self.wall_before + time.monotonic() - self.started

    def advice(self, adviser: LLMController | None, rng: torch.Generator | None = None) -> Guidance | None:
        """How a policy is advised: by `adviser` through this run's gate. rng: of the gate's dropout."""
        if adviser is None or self.gate is None:
            return None
        heads = self.learner.heads if self.learner else {}
        discount = 1.0 - 1.0 / self.cfg.agent.discount_horizon
        return Guidance(self.gate, adviser, heads.get("prior_net"), discount, rng)  # type: ignore[arg-type]

    def run(self) -> str:
        """Tick to the end, or until a stop is asked for, and save. Returns "finished" or "interrupted"."""
        try:
            while self.env_step < self.cfg.run.steps or self.todo:
                self.stop.check()
                self.tick()
            if self.cfg.run.eval_every and (not self.curve or self.curve[-1][0] != self.env_step):
                self.evaluate()
            status = "finished"
        except Stopped:
            status = "interrupted"
        self.save()
        self.checkpoints.wait()
        self.summary(status)
        return status

    def tick(self) -> None:
        """One step of every environment, and the gradient steps that are due for it.

        Raises Stopped between two steps where a stop was asked for: the next tick then does what is left.
        """
        if not self.todo:
            self.todo = self._act()
        work = {"learn": self.learn, "log": self.log, "evaluate": self.evaluate, "save": self.save}
        while self.todo:
            name = self.todo.pop(0)
            try:
                work[name]()
            except Stopped:
                self.todo.insert(0, name)
                raise

    def _act(self) -> list[str]:
        """Act once. What is due after it, in order."""
        before = self.env_step
        self.act()
        run = self.cfg.run
        rhythm = {"log": run.log_every, "evaluate": run.eval_every, "save": run.save_every}
        return ["learn", *(name for name, every in rhythm.items() if self._due(every, before))]

    def act(self) -> None:
        """One step of every environment, remembered."""
        states = self.envs.states() if self.remembers else ()
        carry, decision = self.policy(self.carry, self.obs, states, self.env_step)
        if self.replay is not None:
            self.replay.add(self._row(decision), carry.latent)
        if self.guidance is not None:
            self.guidance.add(decision, self.obs["is_last"].tolist())
        taken = one_hot(decision.action, self.envs.num_actions, torch.float32).mean(0)
        self.metrics.add({"policy/action_histogram": taken})
        self._name_arms()
        self.carry = carry
        self._step(decision.action)
        for episode in self.envs.pop_episodes():
            self.logger.episode(episode)
            self.layouts.add(episode.layout)
            self.window.append(episode.success)
            self.episodes += 1
            self.successes += episode.success
            if self.adviser:
                self.adviser.episode(episode.success, self.env_step)
            self.metrics.add({"episode/return": episode.return_, "episode/length": episode.length})

    def _step(self, action: torch.Tensor) -> None:
        """Step the environments, with an outside observer looking on."""
        acted = (~self.obs["is_last"]).tolist()
        self.skills.before(self.obs["is_first"].tolist())
        self.obs = self.envs.step(action.cpu().numpy())
        self.skills.after(acted, self.obs["is_last"].tolist())

    def _row(self, decision: Decision) -> dict[str, torch.Tensor]:
        """What the replay keeps of a step besides the latent."""
        row = {f"obs/{k}": torch.from_numpy(self.obs[k]) for k in self.spec}
        row |= {k: torch.from_numpy(self.obs[k]) for k in (*FLAGS, "reward")}
        row["success"] = torch.from_numpy(self.envs.won())
        if decision.mixed is not None and decision.prior is not None:
            prior, mixed = decision.prior, decision.mixed
            row |= {"prior": prior.logits, "mask": prior.mask}
            row |= {"confidence": prior.confidence, "source": prior.source}
            row |= {"beta": mixed.beta, "temperature": mixed.temperature}
        return row | {"action": decision.action}

    def _name_arms(self) -> None:
        """An episode that begins when the adviser is no longer followed has the arm none."""
        end = self.cfg.gate.follow_steps
        if self.gate and self.gate.follows and end is not None and self.env_step >= end:
            first = self.obs["is_first"].tolist()
            self.envs.arms = [
                "none" if begins else arm for begins, arm in zip(first, self.envs.arms, strict=True)
            ]

    def learn(self) -> None:
        """Gradient steps until train_ratio replayed steps have been trained on per environment step."""
        if self.learner is None or self.replay is None:
            return
        agent = self.cfg.agent
        ready = self.env_step - self.cfg.run.prefill
        due = int(max(0, ready) * agent.train_ratio / (agent.batch_size * agent.seq_len))
        self.learner.actor_learns = self.env_step >= self.cfg.explore.actor_warmup
        if self.learner.guide is not None:
            self.learner.guide.env_step = self.env_step
        while self.updates < due:
            self.stop.check()
            batch = self.replay.sample(agent.batch_size, agent.seq_len, self.cfg.replay.success_bias)
            self.metrics.add({"replay/success_share": batch.success.any(1).float().mean()})
            metrics, latent = self.learner.update(batch, report=self.report_due)
            self.report_due = False
            self.replay.refresh(batch.index, latent)
            self.metrics.add(metrics)
            self.updates += 1

    def log(self) -> None:
        row: dict[str, Any] = self.metrics.result()
        row["gradient_steps"] = self.updates
        if self.episodes:
            row["success/windowed"] = sum(self.window) / len(self.window)
            row["success/cumulative"] = self.successes / self.episodes
        if self.adviser and self.guidance:
            row |= self.guidance.result() | self.adviser.metrics()
        row |= self.skills.result()
        self.report_due = True
        row["time/wall_s"] = self.wall_s
        self.logger.metrics(self.env_step, row)

    def advice_totals(self) -> dict[str, float]:
        """What the adviser cost and did since the run began; nothing without one."""
        if self.adviser is None or self.guidance is None:
            return {}
        return {**self.guidance.influence(), **self.adviser.metrics()}

    def evaluate(self) -> None:
        """Held-out episodes with advice off, and the summary of the run so far.

        Raises Stopped between two of their steps where a stop was asked for; nothing of it then stays.
        """
        started = time.monotonic()
        play = partial(self.evaluator.run, self.agent, self.env_step, between=self._between)
        sampled = score(play(), self.layouts)
        values = {
            "eval/return": sampled.return_,
            "eval/length": sampled.length,
            "eval/unseen_layouts": sampled.unseen,
        }
        greedy, advised = self.greedy, self.advised
        if self.cfg.run.eval_greedy:
            greedy = score(play(greedy=True), set()).success
        if self.adviser and self.cfg.run.eval_advised:
            reader = self.adviser.reader(self.evaluator.episodes)
            advised = score(play(advice=self.advice(reader)), set()).success
            values["eval/success_advised"] = advised
        self.greedy, self.advised = greedy, advised
        self.curve.append([self.env_step, sampled.success])
        values["time/eval_s"] = time.monotonic() - started
        self.logger.evaluation(self.env_step, sampled.success, self.greedy, values)
        self.summary("running")

    def summary(self, status: str) -> None:
        self.logger.summary(
            make_summary(
                env_id=self.cfg.env.id,
                arm=arm_name(self.cfg),
                seed=self.cfg.seed,
                env_steps=self.env_step,
                gradient_steps=self.updates,
                wall_s=self.wall_s,
                status=status,
                eval_curve=self.curve,
                eval_success_greedy=self.greedy,
                eval_success_advised=self.advised,
                advice=self.advice_totals(),
                alerts=self.logger.alerts,
            )
        )

    def _between(self, over: int, episodes: int) -> None:
        """Called between two steps of an evaluation of which `over` of `episodes` have ended."""
        self.stop.check()

    def save(self) -> None:
        """Save unless this state is the latest save. One in the middle of this step is replaced."""
        now = (self.env_step, self.updates, list(self.todo))
        if self.saved != now:
            self.checkpoints.save(self.env_step, self.state_dict())
            self.saved = now

    def restore(self) -> None:
        """Go on from the latest checkpoint; a run that has none starts here, with one at step 0."""
        state = self.checkpoints.load()
        if state is None:
            self.logger.restart()
            self.save()
        else:
            self.load_state_dict(state)
            self.saved = (self.env_step, self.updates, list(self.todo))

    def state_dict(self) -> dict[str, Any]:
        """All that the next tick depends on, but for the replay."""
        return {
            "agent": self.agent.state_dict(),
            "act_rng": self.policy.rng.get_state(),
            "replay_rng": self.replay.rng.get_state() if self.replay is not None else None,
            "carry": [self.carry.latent.deter, self.carry.latent.stoch, self.carry.prev_action],
            "advice_carry": [self.carry.latched, self.carry.value],
            "gate": self.gate.state_dict() if self.gate else None,
            "gate_dropout": self.dropout.get_state(),
            "guidance": self.guidance.state_dict() if self.guidance else None,
            "report_due": self.report_due,
            "skills": self.skills.state_dict(),
            "envs": self.envs.state_dict(),
            "metrics": self.metrics.state_dict(),
            "logger": self.logger.state_dict(),
            "updates": self.updates,
            "curve": list(self.curve),
            "greedy": self.greedy,
            "advised": self.advised,
            "adviser": self.adviser.state_dict() if self.adviser else None,
            "window": list(self.window),
            "episodes": [self.episodes, self.successes],
            "layouts": sorted(self.layouts),
            "wall_s": self.wall_s,
            "todo": list(self.todo),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the stored run and this configuration do not fit."""
        self.agent.load_state_dict(state["agent"])
        self.policy.rng.set_state(state["act_rng"])
        if self.replay is not None:
            self.replay.rng.set_state(state["replay_rng"])
        deter, stoch, action = (x.to(self.agent.device) for x in state["carry"])
        self.carry.latent.deter, self.carry.latent.stoch, self.carry.prev_action = deter, stoch, action
        latched, value = (None if x is None else x.to(self.agent.device) for x in state["advice_carry"])
        self.carry.latched, self.carry.value = latched, value
        if self.gate and self.guidance:
            self.gate.load_state_dict(state["gate"])
            self.guidance.load_state_dict(state["guidance"])
        self.dropout.set_state(state["gate_dropout"])
        self.report_due = state["report_due"]
        self.skills.load_state_dict(state["skills"])
        self.envs.load_state_dict(state["envs"])
        self.obs = self.envs.observation
        self.metrics.load_state_dict(state["metrics"])
        self.logger.load_state_dict(state["logger"])
        self.updates, self.curve, self.greedy = state["updates"], state["curve"], state["greedy"]
        self.advised = state["advised"]
        if self.adviser:
            self.adviser.load_state_dict(state["adviser"])
        self.window.extend(state["window"])
        self.episodes, self.successes = state["episodes"]
        self.layouts = set(state["layouts"])
        self.wall_before = state["wall_s"]
        self.todo = list(state.get("todo", ()))  # older checkpoints were made between two ticks

    def _due(self, every: int, before: int) -> bool:
        return every > 0 and self.env_step // every > before // every
