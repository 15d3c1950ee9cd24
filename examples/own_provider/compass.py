"""An adviser of your own: it goes for the goal where the agent has seen it, and explores where not.

    pip install examples/own_provider
    lore-train llm=compass env=empty5

An adviser is anything with the attributes and methods below; docs/advisers.md says what a request holds and
how an answer is written. A language model would read `request.system` and `request.prompt`; this rule reads
`request.state`.
"""

from __future__ import annotations

import json

from lore.llm.providers import Reply, Request


class Compass:
    """Says `goto(goal)` or `explore`. Free, at once, and it sees no more than the agent."""

    name = "compass"
    model = "rule 1"
    paid = False
    privileged = False

    def __init__(self, options: object) -> None:
        """Take the options of the group `llm`, such as llm.model; this adviser needs none."""

    def identity(self) -> str:
        """Name everything that shapes the answers: stored ones are used again only under the same text."""
        return f"{self.name} {self.model}"

    def max_cost_usd(self, request: Request) -> float:
        """Bound what one ask can cost, in dollars."""
        return 0.0

    def ask(self, request: Request) -> Reply:
        """Answer one request.

        Args:
            request: the agent's view in words (`prompt`) and as data (`state`), and the names of the actions.

        Returns:
            The answer as JSON text, with the tokens and the dollars that it took.

        Raises:
            lore.llm.providers.ProviderError: an ask that failed; training goes on without advice.
        """
        seen = any(thing.kind == "goal" for thing in request.state.cells.values())
        answer = {
            "why": "the goal was seen" if seen else "no goal was seen yet",
            "plan": "goto(goal)" if seen else "explore",
            "policy": None,
            "confidence": 0.9 if seen else 0.5,
        }
        return Reply(
            text=json.dumps(answer),
            input_tokens=0,
            output_tokens=0,
            cached_tokens=0,
            cost_usd=0.0,
            latency_s=0.0,
            stop="rule",
        )
