"""The adviser that serves the answers of a data set: those of a real model, asked once."""

from __future__ import annotations

from pathlib import Path

from lore.base.errors import BadInput
from lore.base.files import as_file_name, user_path
from lore.config.options import LLMOptions
from lore.llm.answer import Answer
from lore.llm.prompt import PROMPT_VERSION, WORDINGS
from lore.llm.providers.recorded_files import BadLine, DataSet, RecordedAnswer, load, prompt_id
from lore.llm.request import ProviderError, Reply, Request

SHIPPED = "lore:"  # begins the name of a data set of this package, lore:COLLECTION/TASK
SHIPPED_FOLDER = Path(__file__).parents[1] / "datasets"  # collection / task / files


class RecordedAnswersProvider:
    """Serves the answer to exactly this prompt; else, with `share_plans`, the first plan of its plan key.

    A run seldom stands just where the exploration stood, except in the smallest worlds. The controller uses
    one plan for all states of a plan key, and so does this provider, whatever the words of the question are
    (lore-probe tries several). Reply.stop says which it was, "recorded" or "recorded_plan". An unusable
    answer is served as it is: it shows the model's quality.

    A data set whose prompts are of an older version than this program's is asked in the words of its version.
    """

    name = "recorded"
    paid = False
    privileged = False

    @staticmethod
    def check(options: LLMOptions) -> None:
        """Read the data set once.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: The data set is missing, damaged, or of another version.
        """
        _read(options)

    def __init__(self, options: LLMOptions) -> None:
        """Read the data set.

        Args:
            options: The options of the group `llm`.

        Raises:
            BadInput: As `check`.
        """
        data = _read(options)
        self.model = data.model
        self._data, self._share = data, options.share_plans
        self._plans: dict[str, RecordedAnswer] = {}
        for prompt in data.prompts.values() if options.share_plans else ():
            if prompt.plan_key in self._plans:
                continue
            answer = data.parsed(prompt.id)
            if isinstance(answer, Answer) and answer.plan is not None:
                self._plans[prompt.plan_key] = data.answers[prompt.id]

    def identity(self) -> str:
        """See Provider. Another data set is another adviser."""
        return f"recorded model={self.model} data={self._data.digest} share_plans={self._share}"

    def max_cost_usd(self, request: Request) -> float:
        """See Provider: nothing, because the answers were paid for when they were recorded."""
        return 0.0

    def ask(self, request: Request) -> Reply:
        """See Provider. Tokens are those of the recording; dollars and seconds are 0.

        Args:
            request: The question.

        Raises:
            ProviderError: "missing" where nothing is recorded for the question. Asking again will not help.
        """
        header = self._data.header
        if header.prompt_version != PROMPT_VERSION:
            wording = WORDINGS[header.prompt_version]
            request = wording.make_request(request.state, request.actions, request.max_tokens)
        name = prompt_id(request.system, request.prompt, request.actions, header.prompt_version)
        found, stop = self._data.answers.get(name), "recorded"
        if found is None and list(request.actions) == header.actions:
            found, stop = self._plans.get(request.plan_key), "recorded_plan"
        if found is None:
            raise ProviderError("missing", f"no answer to prompt {name[:12]} in this data set")
        tokens = (found.input_tokens, found.output_tokens, found.cached_tokens)
        return Reply(found.text, *tokens, cost_usd=0.0, latency_s=0.0, stop=stop)


def _read(options: LLMOptions) -> DataSet:
    if not options.dataset:
        raise BadInput(
            "llm.dataset",
            "is missing; name the folder of a data set that lore-record import wrote, or take "
            "llm=recorded_claude",
        )
    try:
        return load(_folder(options.dataset))
    except (OSError, BadLine) as error:
        raise BadInput(
            "llm.dataset",
            f"{options.dataset!r} cannot be used: {error}; name the folder of a data set that lore-record "
            "import wrote",
        ) from error


def _folder(dataset: str) -> Path:
    """Return where a data set is: a folder of the user, or of this package."""
    if not dataset.startswith(SHIPPED):
        return user_path(dataset, "llm.dataset")
    collection, _, task = dataset.removeprefix(SHIPPED).partition("/")
    collections = sorted(path.name for path in SHIPPED_FOLDER.iterdir())
    if collection not in collections:
        raise BadInput(
            "llm.dataset", f"{dataset!r}: no such collection; this package has {', '.join(collections)}"
        )
    tasks = sorted(path.name for path in (SHIPPED_FOLDER / collection).iterdir())
    if as_file_name(task) not in tasks:
        raise BadInput(
            "llm.dataset",
            f"{dataset!r}: {collection} was not asked about {task or 'a task without a name'}, only about "
            f"{', '.join(tasks)}; take llm=scripted, or make a data set with lore-record",
        )
    return SHIPPED_FOLDER / collection / as_file_name(task)
