"""Every option of a run as plain dataclasses: types, defaults and one comment per field.

The group `gate` is a `GateOptions`, and so on; `Config` holds all groups. The YAML files in `lore/conf` hold
the values, `config/compose.py` gives Hydra the types, `config/checks.py` checks ranges and combinations.
Nothing here imports Hydra, so the classes that take an options object do not either.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunOptions:
    """Length and rhythm of a run. Every count is in environment steps, summed over the environments."""

    steps: int = 10_000  # environment steps of the whole run, prefill included
    envs: int = 1  # environments side by side
    prefill: int = 300  # steps before the first gradient step, by the untrained (nearly uniform) policy
    eval_every: int | None = None  # distance of evaluations; 0: none; null: by the task's time limit
    eval_episodes: int = 100  # held-out episodes an evaluation
    eval_greedy: bool = True  # evaluate the greedy policy beside the sampled one
    eval_advised: bool = True  # with an adviser: evaluate with advice on as well
    save_every: int = 500  # distance of checkpoints
    log_every: int = 100  # distance of rows in metrics.jsonl
    dir: str = ""  # run folder; filled in at start


@dataclass
class EnvOptions:
    """The task."""

    id: str = "MiniGrid-DoorKey-5x5-v0"  # of MiniGrid or BabyAI, PACKAGE:ID, or an entry point
    actions: str = "all"  # all | useful: leave out the actions that the task never needs
    shaping: float = 0.0  # coefficient of the potential-based shaping reward; 0 is off
    max_steps: int | None = None  # time limit of an episode in steps; null keeps the task's own
    timeout: str = "truncate"  # the time limit: truncate (something would follow) | terminal (nothing does)
    clock: bool = False  # show the agent the share of the episode's time that is left
    hint: bool = False  # room in the observation for advice, a weight for each action; gate=hint fills it
    family: str = "minigrid"  # kind of worlds, or one of an installed package


@dataclass
class SizeOptions:
    """Widths of all networks. The names and numbers are those of the official DreamerV3 configs."""

    deter: int = 512  # units of the recurrent state
    hidden: int = 64  # width of the RSSM's hidden layers
    classes: int = 4  # classes of each categorical latent
    units: int = 64  # width of encoder, decoder and heads
    depth: int = 4  # base channels of the image encoder and decoder
    stoch: int = 32  # categorical latents
    blocks: int = 8  # diagonal blocks of the recurrent layer; divides deter


@dataclass
class ReplayOptions:
    """Memory of past experience."""

    capacity: int = 100_000  # environment steps kept, summed over the environments
    success_bias: float = 0.0  # share of a batch's sequences that hold a success, where there are any


def _scales() -> dict[str, float]:
    return {
        "obs": 1.0,
        "reward": 1.0,
        "cont": 1.0,
        "dyn": 1.0,
        "rep": 0.1,
        "actor": 1.0,
        "critic": 1.0,
        "replay_critic": 0.3,
        "critic_ensemble": 1.0,
        "disagreement_ensemble": 1.0,
        "prior_net": 1.0,
        "kl": 1.0,
        "clone": 1.0,
    }


@dataclass
class AgentOptions:
    """DreamerV3's learning rule; `random` and `prior` use the name only."""

    name: str = "dreamer"  # dreamer | random | prior (follows the adviser alone)
    batch_size: int = 8  # sequences a gradient step, B
    seq_len: int = 32  # steps a sequence, T
    train_ratio: float = 160.0  # replayed steps trained on for each environment step
    horizon: int = 15  # imagined steps, H
    discount_horizon: int = 333  # 1 / (1 - discount), in steps
    lam: float = 0.95  # lambda of the returns
    entropy: float = 3e-4  # coefficient of the actor's entropy bonus
    lr: float = 3e-4  # learning rate of the one optimiser (LaProp)
    warmup: int = 200  # updates over which the learning rate rises linearly from 0
    agc: float = 0.3  # adaptive gradient clipping: largest gradient norm / weight norm, per tensor
    beta1: float = 0.9  # LaProp: decay of the momentum
    beta2: float = 0.999  # LaProp: decay of the second moment
    opt_eps: float = 1e-20  # LaProp: epsilon
    unimix: float = 0.01  # share of the uniform distribution in every categorical latent
    free_nats: float = 1.0  # KL below which dyn and rep exert no pull
    bins: int = 255  # bins of the two-hot reward and value distributions
    slow_rate: float = 0.02  # share of the critic copied into the slow critic at an update
    slow_reg: float = 1.0  # weight of the critic's pull towards the slow critic
    return_rate: float = 0.01  # rate of the return percentiles' moving average
    return_limit: float = 1.0  # smallest divisor in return normalisation
    return_low: float = 5.0  # lower return percentile
    return_high: float = 95.0  # upper return percentile
    replay_value: str = "keep"  # critic loss on replayed rows that were advised: keep | weight | drop
    critic_ensemble: int = 0  # extra bootstrapped critics; 0: as many as the gate needs
    disagreement_ensemble: int = 0  # one-step predictors of the next latent; 0: as many as the gate needs
    scales: dict[str, float] = field(default_factory=_scales)  # weight of each loss, by its name


@dataclass
class ExploreOptions:
    """The original's exploration knobs; all off by default. They act in training only."""

    epsilon_start: float = 0.0  # share of steps with a uniformly random action, at the first step
    epsilon_end: float = 0.0  # the same after anneal_steps; linear in between
    temperature_start: float = 1.0  # logits are divided by it before sampling, at the first step
    temperature_end: float = 1.0  # the same after anneal_steps; linear in between
    anneal_steps: int | None = None  # environment steps of both ramps; null: run.steps
    valid_noise: bool = False  # epsilon's actions are drawn from those that can change something here
    actor_warmup: int = 0  # environment steps during which the actor does not learn


@dataclass
class KLOptions:
    """How far advice may move the policy: KL(pi_mix || pi_wm) in nats."""

    mode: str = "penalty"  # none | penalty (a Lagrangian in the actor's loss) | project (beta is lowered)
    delta_target: float = 0.1  # what the KL is held to
    kl_lr: float = 1e-3  # step of the multiplier lambda at an update
    lambda_max: float = 10.0  # largest multiplier


def _weights() -> dict[str, float]:
    return {"entropy": 0.5, "value_var": 0.3, "disagreement": 0.2}


@dataclass
class GateOptions:
    """How strongly advice is mixed into the policy: beta(s) of pi_mix ~ pi_wm * pi_llm^beta.

    Steps are environment steps of the run.
    """

    name: str = "lore"  # none | fixed | lore | follow | hint, or one of an installed package
    # fixed
    beta: float = 0.3  # beta wherever there is advice
    # lore
    beta_max: float = 0.3  # largest beta
    kappa: float = 10.0  # steepness of beta in the uncertainty u
    tau: float = 0.5  # u at which beta is half of beta_max
    tau_high: float = 0.6  # u above which the latch goes on
    tau_low: float = 0.4  # u below which it goes off
    off_scale: float = 0.5  # factor on beta while the latch is off
    warmup_steps: int = 5000  # steps over which beta rises linearly from 0
    dropout: float = 0.05  # share of training steps acted without advice
    weights: dict[str, float] = field(default_factory=_weights)  # of the terms of u
    members: int = 5  # networks in each of the two ensembles that u needs
    norm_updates: int = 1000  # gradient steps over which the terms' norms are averaged, then frozen
    # follow
    follow_steps: int | None = None  # steps that advice alone is followed for, then none; null: always
    # all
    temperature: str = "entropy"  # of the advice: entropy | match | fixed
    entropy_share: float = 0.5  # entropy: of the advised distribution, as a share of log A
    fixed_temperature: float = 1.0  # fixed
    veto: bool = False  # advice does not act where the critics are sure that another action is better
    mix_in_imagination: bool = False  # mix PriorNet's advice into imagined steps too
    beta_imagine_max: float = 0.1  # largest beta there
    kl: KLOptions = field(default_factory=KLOptions)


@dataclass
class PriorNetOptions:
    """The adviser, distilled into a network."""

    enabled: bool = False  # distil the adviser, and ask the network where it is confident
    members: int = 5  # networks in the ensemble
    max_entropy: float = 0.5  # of the mean advice, as a share of log A: above it, it is not confident
    max_disagreement: float = 0.05  # mutual information of action and member, as a share of log A


@dataclass
class TeachOptions:
    """How advice enters learning: docs/teaching.md. All but clone need prior_net.enabled."""

    name: str = "none"  # none | informed | kickstart | clone | mix
    # informed
    w_max: float = 0.97  # largest share of the distilled adviser in the policy that is informed
    mi_max: float = 1.0  # mutual information of action and member, a share of log A, at which it has no share
    eta_q: float = 0.03  # coefficient of the KL to the informed policy where its share is w_max
    # kickstart, clone
    weight: float = 0.1  # of the loss, at the first step
    # kickstart
    anneal_steps: int | None = None  # environment steps over which the weight falls to 0; null: it stays
    filtered: bool = False  # only where the world model and the critic do not speak against the advice
    margin: float = 0.02  # filtered: how much less than the state's value the advised action may promise


@dataclass
class TrialOptions:
    """In which training episodes advice may act, and when it is trusted in learning: docs/trial.md."""

    name: str = "none"  # none (always, trusted) | coin | paired (trusted after a verdict) | jumpstart
    share: float = 0.5  # coin, paired: probability that an episode is advised
    alpha: float = 0.05  # paired: probability of a false verdict of benefit in a whole run; as much of harm
    eps: float = 0.05  # paired: difference of mean returns, scaled to [0, 1], that counts as none
    cap: float = 0.2  # paired: share of a trial's steps that advice may act in before its verdict
    horizon: float | None = 4.0  # paired: success counts within this many advised lengths; null: whenever


@dataclass
class HealthOptions:
    """Alerts about a run that goes wrong. They report and never change training."""

    enabled: bool = True  # watch the metrics
    verbose: bool = False  # say the likely cause and the knob to turn with each alert
    entropy_min: float = 0.5  # policy entropy in nats below which it is low, while success < 0.9
    beta_saturation: float = 0.8  # mean of beta / beta_max above which the gate is saturated
    kl_rows: int = 10  # rows of metrics in a row with the KL above its target
    influence_kl: float = 1e-4  # mean KL below which a prior that is there has no influence
    invalid_actions: float = 0.6  # share of actions without effect above which they surge
    grad_norm: float = 1e3  # gradient norm above which it explodes


@dataclass
class PriceOptions:
    """Dollars for a million tokens."""

    input: float
    output: float
    cache_write: float
    cache_read: float


@dataclass
class LLMOptions:
    """The adviser: who is asked, how often, and at what price. Steps are environment steps of the run.

    A provider reads what it needs of this; what only some of them read stands at the end.
    """

    provider: str = "scripted"  # none, or a name from docs/advisers.md; the groups llm=NAME set it
    wait: bool = True  # ask in the step; false: go on without advice until the answer is there
    timeout_s: float = 10.0  # hard limit of an ask, retries included, in seconds
    api_retries: int = 1  # further attempts after a failure that may pass
    max_tokens: int = 2048  # longest answer, the model's thinking included
    budget_total: int | None = 200  # asks a run, those that the cache serves included; null: no limit
    budget_usd: float | None = None  # dollars a run
    budget_tokens: int | None = None  # tokens a run, in and out
    cooldown_steps: int | None = 200  # steps after an ask without another
    success_cooldown_steps: int | None = 500  # steps after a successful episode without an ask
    triggers: bool = True  # ask only where one of the triggers fires
    latch: bool = True  # ask only while the gate's latch is on
    novelty_threshold: float = 0.1  # 1 / sqrt(visits of a kind of situation) above which it is new
    td_error_threshold: float = 2.0  # running standard deviations above which a TD error surprises
    plateau_window: int = 50  # episodes over which success is compared
    breaker_failures: int = 5  # failures in a row after which asking pauses
    breaker_pause: int = 500  # steps that it pauses for
    cache: str | None = "~/.cache/lore/answers.sqlite"  # answers shared by runs; null: none
    ledger: str | None = None  # file that counts the provider calls of a whole sweep
    ledger_limit: int | None = None  # provider calls of the sweep
    corruption: float = 0.0  # share of the kinds of situation whose answers are made wrong, 0 to 1
    corruption_kind: str = "random"  # how it is wrong: random (each otherwise) | systematic (by one rule)
    # anthropic, local
    model: str = ""  # name at the API; or a Hugging Face id, a folder or a GGUF file
    # anthropic
    effort: str | None = None  # output_config.effort; null for a model or server that does not know it
    base_url: str | None = None  # another server of the Messages API; null: ANTHROPIC_BASE_URL, or its own
    key_variable: str = "ANTHROPIC_API_KEY"  # environment variable that holds the key; never the key itself
    prices: PriceOptions | None = None  # null: the published ones of a model that is known
    batch_price: float = 0.5  # price in a batch, as a share of the price
    # local
    device: str = "cpu"  # cpu | cuda | cuda:N
    dtype: str = "bfloat16"  # of weights and activations: float32 | bfloat16 | float16
    scoring: str = "plan"  # what the candidates are: plan | subgoal | action
    calibration: str = "contextual"  # none | contextual | batch
    batch_size: int = 16  # candidates scored side by side
    # recorded
    dataset: str = ""  # folder of a data set, as lore-record import writes it
    share_plans: bool = True  # a plan also answers other states of its kind, as it does in a run
    # scripted
    competence: float = 1.0  # share of the kinds of situation in which the answer is right, 0 to 1
    failure: str = "independent"  # how the others are wrong: independent | colors | sides | explore
    seed: int = 0  # decides in which situations the answer is wrong, and how


@dataclass
class LoggerOptions:
    """Where metrics go besides metrics.jsonl."""

    wandb: str = "auto"  # auto (online with a key, offline without) | offline | disabled
    project: str = "lore"  # W&B project
    group: str | None = None  # W&B group; null: the sweep's folder, where there is a sweep
    tags: list[str] = field(default_factory=list)  # W&B tags, besides task, arm and adviser
    terminal: str = "auto"  # auto (live on a terminal, plain elsewhere) | live | plain | off


@dataclass
class Config:
    """A whole run. `lore-train KEY=VALUE ...` sets any of these."""

    seed: int = 0  # seed of everything random in the run
    device: str = "cpu"  # cpu | cuda | cuda:N
    dtype: str = "auto"  # of the networks: bfloat16 | float32 | auto (bfloat16 where the device has it)
    threads: int = 1  # CPU threads of torch
    obs: str = "symbolic"  # symbolic (one-hot cells) | raw147 (147 numbers) | rgb64 (64 x 64 image)
    resume: str | None = None  # run folder to go on with, under its stored config
    ablation: str | None = None  # the letter or arm that +ablation=NAME stands for; it sets this itself
    run: RunOptions = field(default_factory=RunOptions)
    env: EnvOptions = field(default_factory=EnvOptions)
    agent: AgentOptions = field(default_factory=AgentOptions)
    size: SizeOptions = field(default_factory=SizeOptions)
    replay: ReplayOptions = field(default_factory=ReplayOptions)
    explore: ExploreOptions = field(default_factory=ExploreOptions)
    gate: GateOptions = field(default_factory=GateOptions)
    prior_net: PriorNetOptions = field(default_factory=PriorNetOptions)
    teach: TeachOptions = field(default_factory=TeachOptions)
    llm: LLMOptions = field(default_factory=LLMOptions)
    trial: TrialOptions = field(default_factory=TrialOptions)
    health: HealthOptions = field(default_factory=HealthOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
