"""Log-probabilities of short texts under a causal language model. Needs the extra `lore[local]`.

A prompt is read once for all its candidates, and what it shares with the prompt before, such as the
instructions, is not read again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils import logging

from lore.base.errors import BadInput
from lore.llm.request import ProviderError


class Usage(NamedTuple):
    """Tokens so far.

    Attributes:
        prompt: Tokens of prompts.
        reused: Those of them that were not read again, because the prompt before began with them too.
        candidates: Tokens of candidates that were scored.
    """

    prompt: int = 0
    reused: int = 0
    candidates: int = 0


class Settings(Protocol):
    """The options that matter here: see LLMOptions."""

    device: str
    dtype: str
    batch_size: int


class Scorer:
    """One model and its tokenizer. Not safe for several threads at once."""

    def __init__(self, model: str, settings: Settings) -> None:
        """Load model and tokenizer.

        Args:
            model: Hugging Face id, folder, or a path that ends in .gguf.
            settings: Device, number format and candidates at a time.

        Raises:
            BadInput: The device is not there, or the model cannot be loaded.
        """
        _check_device(settings.device)
        logging.disable_progress_bar()
        folder, _, file = model.rpartition("/") if model.endswith(".gguf") else (model, "", "")
        where: dict[str, Any] = {"gguf_file": file} if file else {}
        plain = {"quantization_config": GgufConfig(dequantize=True)} if file else {}  # packed ones are slow
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder or ".", **where)
            net: Any = AutoModelForCausalLM.from_pretrained(
                folder or ".", dtype=vars(torch)[settings.dtype], **where, **plain
            )
            self._net = net.to(settings.device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise BadInput("llm.model", f"{model!r} cannot be loaded: {error}") from error
        self._batch_size = settings.batch_size
        self._limit: int = getattr(self._net.config.get_text_config(), "max_position_embeddings", 1 << 30)
        self._ids: list[int] = []
        self._cache: Any = None
        self.usage = Usage()

    @torch.inference_mode()
    def score(self, prompt: str, candidates: Sequence[str]) -> list[float]:
        """Score candidates as the model's reply to a prompt.

        The tokens that all candidates begin with count as part of the prompt.

        Args:
            prompt: The user's message.
            candidates: Possible replies.

        Returns:
            For each candidate the mean log-probability of its tokens after the prompt, in nats.

        Raises:
            ProviderError: too_long or out_of_memory.
        """
        tails = [self._tokenizer(text, add_special_tokens=False).input_ids for text in candidates]
        shared = _common(tails)
        head = self._chat(prompt) + tails[0][:shared]
        tails = [tail[shared:] for tail in tails]
        if len(head) + max(map(len, tails)) > self._limit:
            raise ProviderError("too_long", f"{len(head)} tokens, the model reads {self._limit}")
        try:
            first = self._read(head)
            scores: list[float] = []
            for at in range(0, len(tails), self._batch_size):
                scores += self._continue(first, tails[at : at + self._batch_size])
        except torch.OutOfMemoryError as error:
            raise ProviderError("out_of_memory", str(error)) from None
        used = self.usage
        self.usage = used._replace(candidates=used.candidates + sum(map(len, tails)))
        return scores

    def _chat(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return self._tokenizer(f"{prompt}\n").input_ids
        messages = [{"role": "user", "content": prompt}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _read(self, ids: list[int]) -> torch.Tensor:
        """Bring the cache to exactly `ids`. Returns the log-probabilities (V,) of the token after them."""
        cache, known = self._cache, self._ids
        self._cache, self._ids = None, []  # nothing is kept if the model fails
        kept = min(_common([ids, known], spare=0), len(ids) - 1) if _croppable(cache) else 0
        if kept == 0:
            cache = None
        elif kept < len(known):
            cache.crop(kept - len(known))  # negative: so many tokens less
        new = self._tensor([ids[kept:]])  # (1, new tokens)
        out = self._net(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._ids, self._cache = ids, out.past_key_values
        used = self.usage
        self.usage = used._replace(prompt=used.prompt + len(ids), reused=used.reused + kept)
        return out.logits[0, -1].float().log_softmax(-1)

    def _continue(self, first: torch.Tensor, tails: list[list[int]]) -> list[float]:
        """Return the mean log-probability of each of N candidates.

        Args:
            first: Log-probabilities of the first token, (V,) for V words of the vocabulary.
            tails: N lists of tokens.
        """
        total = first[[tail[0] for tail in tails]]  # (N,)
        lengths = torch.tensor([len(tail) for tail in tails], device=total.device)
        longest = int(lengths.max())
        if longest > 1:
            cache = copy.deepcopy(self._cache)
            cache.batch_repeat_interleave(len(tails))
            tokens = pad_sequence([self._tensor(tail) for tail in tails], batch_first=True)  # (N, L)
            logits = self._net(tokens[:, :-1], past_key_values=cache, use_cache=True).logits
            logs = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]  # (N, L-1)
            inside = torch.arange(1, longest, device=total.device) < lengths[:, None]
            total = total + (logs * inside).sum(-1)
        return (total / lengths).tolist()

    def _tensor(self, ids: Any) -> torch.Tensor:
        return torch.tensor(ids, device=self._net.device)


def _check_device(name: str) -> None:
    try:
        missing = torch.device(name).type == "cuda" and not torch.cuda.is_available()
    except RuntimeError as error:
        raise BadInput("llm.device", f"{name!r} is not known; cpu, cuda or cuda:N") from error
    if missing:
        raise BadInput("llm.device", f"{name!r} is not available here; use cpu")


def _common(rows: Sequence[Sequence[int]], spare: int = 1) -> int:
    """Return how many leading tokens are the same in all rows; each row keeps at least `spare` others."""
    same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
    return min(same, min(map(len, rows)) - spare)


def _croppable(cache: Any) -> bool:
    """Say whether a cache keeps every token by itself; others (a sliding window) cannot be cut back."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
