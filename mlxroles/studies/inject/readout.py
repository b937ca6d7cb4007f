"""What is measured of the logits that follow a prompt, one row of numbers per run.

The first measure is the one that shifts are taken of. All are natural logarithms or nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import PromptError
from mlxroles.probes import Targets
from mlxroles.text import safe_text

Numbers = NDArray[np.float64]

COMMON = ("p_answer", "entropy", "kl")
"""Every readout has these last: probability of the answers together, entropy of the next token,
KL from the run without injection to this one."""

_LEADS = ("", " ", "\n")


@dataclass(frozen=True)
class YesNo:
    """b = lse(logits of the Yes tokens) - lse(logits of the No tokens)."""

    yes: tuple[int, ...]
    no: tuple[int, ...]
    names: tuple[str, ...] = ("b", "lse_yes", "lse_no", *COMMON)
    what: str = "Yes - No"

    def measure(self, logits: Numbers, clean: Numbers) -> Numbers:
        """[row, measure] of logits [row, vocab] beside those without injection [vocab]."""
        rows = _finite(logits)
        yes, no = _lse(rows[:, list(self.yes)]), _lse(rows[:, list(self.no)])
        return np.stack([yes - no, yes, no, *_common(rows, clean, (*self.yes, *self.no))], axis=1)

    def document(self) -> dict[str, Any]:
        """The ids."""
        return {"yes": list(self.yes), "no": list(self.no)}


@dataclass(frozen=True)
class Headline:
    """Log-odds and probability of the first token of a string."""

    targets: Targets
    names: tuple[str, ...] = ("log_odds", "p", "p_union", *COMMON)

    @property
    def what(self) -> str:
        """The measure in words."""
        return f"log-odds of {safe_text(self.targets.headline, limit=40)}"

    def measure(self, logits: Numbers, clean: Numbers) -> Numbers:
        """[row, measure] of logits [row, vocab] beside those without injection [vocab]."""
        rows, head = _finite(logits), self.targets.head
        first, whole = rows[:, head.first], _lse(rows)
        others = _lse(np.delete(rows, head.first, axis=1))
        union = np.minimum(np.exp(_lse(rows[:, list(head.variants)]) - whole), 1.0)
        common = _common(rows, clean, (head.first,))
        return np.stack([first - others, np.exp(first - whole), union, *common], axis=1)

    def document(self) -> dict[str, Any]:
        """The ids."""
        return self.targets.document()


@dataclass(frozen=True)
class Choice:
    """Log-probability of each of several answers, one token each."""

    ids: tuple[int, ...]
    labels: tuple[str, ...]
    what: str = "the number of the sentence"

    @property
    def names(self) -> tuple[str, ...]:
        """One log-probability per answer."""
        return (*(f"answer_{n + 1}" for n in range(len(self.ids))), *COMMON)

    def measure(self, logits: Numbers, clean: Numbers) -> Numbers:
        """[row, measure] of logits [row, vocab] beside those without injection [vocab]."""
        rows = _finite(logits)
        each = rows[:, list(self.ids)] - _lse(rows)[:, None]
        return np.stack([*each.T, *_common(rows, clean, self.ids)], axis=1)

    def document(self) -> dict[str, Any]:
        """The ids."""
        return dict(zip(self.labels, self.ids, strict=True))


Readout = YesNo | Headline | Choice


def yes_no(yes: Sequence[str], no: Sequence[str], tokenizer: Any, vocab: int) -> YesNo:
    """The tokens that say Yes and No.

    Every spelling, also after a space or a line break, that is a single token. Where none of an
    answer's spellings is one, the first token of the first spelling stands for it.

    Raises:
        PromptError: there is no tokenizer, or one token would say both.
    """
    says_yes, says_no = (_answers(words, tokenizer, vocab) for words in (yes, no))
    both = sorted({*says_yes} & {*says_no})
    if both:
        raise PromptError(
            f"token {both[0]} would begin '{safe_text(yes[0], limit=20)}' and "
            f"'{safe_text(no[0], limit=20)}' alike; give answers that this tokenizer tells apart"
        )
    return YesNo(says_yes, says_no)


def choice(labels: Sequence[str], tokenizer: Any, vocab: int) -> Choice:
    """One token per answer, as it stands at the beginning of a reply.

    Raises:
        PromptError: there is no tokenizer, or two answers begin with one token.
    """
    ids = tuple(_answers((label,), tokenizer, vocab, leads=("",))[0] for label in labels)
    if len({*ids}) < len(ids):
        raise PromptError(
            "two of the numbers begin with the same token here; the task cannot be read off"
        )
    return Choice(ids, tuple(labels))


def _answers(
    words: Sequence[str], tokenizer: Any, vocab: int, leads: Sequence[str] = _LEADS
) -> tuple[int, ...]:
    if tokenizer is None:
        raise PromptError(
            "the model has no tokenizer to read answers with; measure --token-ids after "
            "--prompt-ids instead of a battery"
        )
    chains = [_shown(lead + word, tokenizer) for word in words for lead in leads]
    single = {chain[0] for chain in chains if len(chain) == 1}
    ids = sorted(single) or [chain[0] for chain in chains[:1] if chain]
    if not ids or ids[-1] >= vocab:
        raise PromptError(f"the answer '{safe_text(words[0], limit=20)}' has no token here")
    return tuple(ids)


def _shown(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text without blank ones before it."""
    ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
    while len(ids) > 1 and not tokenizer.decode(ids[:1]).strip():
        ids = ids[1:]
    return ids


def _common(rows: Numbers, clean: Numbers, answers: Sequence[int]) -> list[Numbers]:
    chosen = sorted({*answers})
    log_p = rows - _lse(rows)[:, None]
    p, log_q = np.exp(log_p), _finite(clean[None])
    log_q = log_q - _lse(log_q)[:, None]
    entropy = np.maximum(-(p * log_p).sum(axis=1), 0.0)
    kl = np.maximum((np.exp(log_q) * (log_q - log_p)).sum(axis=1), 0.0)
    return [np.minimum(p[:, chosen].sum(axis=1), 1.0), entropy, kl]


def _finite(logits: Numbers) -> Numbers:
    rows = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(rows).all():
        raise FloatingPointError("the logits are not all finite numbers")
    return rows


def _lse(rows: Numbers) -> Numbers:
    most = rows.max(axis=-1)
    return most + np.log(np.exp(rows - most[..., None]).sum(axis=-1))
