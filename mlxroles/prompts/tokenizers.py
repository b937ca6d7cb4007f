"""Whether two tokenizers turn the same text into the same ids.

Patching runs one list of ids through two models; that means something only if an id is the same
token in both. The end token is reported by :func:`tokenizer_digest` but not compared: an
instruct model usually ends its turns with a token of its own, and no prompt contains it.
"""

import hashlib
import json
from typing import Any

from mlxroles.prompts.encoding import Tokenizer
from mlxroles.text import safe_text

SAMPLE = (
    "The 3 cats said: «hello», then left.\n\n  def f(x):\n\treturn x**2 + 1000000 # ok\n"
    '{"tool": "save_notes"} <tool_call> naïve Ελλάδα 日本語 🙂 don\'t'
)
"""Encoded by both: equal vocabularies may still split a text differently."""

_SHOWN = 3


def tokenizer_digest(tokenizer: Tokenizer) -> dict[str, Any]:
    """What identifies the tokenizer, for a manifest: digests (SHA-256), sizes, special tokens."""
    vocabulary = _vocabulary(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    sample = tokenizer.encode(SAMPLE, add_special_tokens=False)
    return {
        "vocabulary": _sha256(json.dumps(sorted(vocabulary.items(), key=lambda item: item[::-1]))),
        "size": len(vocabulary),
        "chat_template": None if template is None else _sha256(_template_text(template)),
        "sample": _sha256(json.dumps([int(token) for token in sample])),
        "bos": _special(tokenizer, "bos"),
        "eos": _special(tokenizer, "eos"),
    }


def same_tokenizer(first: Tokenizer, second: Tokenizer) -> list[str]:
    """The differences that matter for shared ids, one line each; empty if there are none.

    Every line begins with what differs: ``vocabulary``, ``splitting``, ``begin token`` or
    ``chat template``. A template that only one of the two has is no difference.
    """
    left, right = tokenizer_digest(first), tokenizer_digest(second)
    differences = []
    if left["vocabulary"] != right["vocabulary"]:
        differences.append(_vocabulary_difference(first, second))
    elif left["sample"] != right["sample"]:
        differences.append("splitting: the same text becomes different tokens")
    if left["bos"] != right["bos"]:
        differences.append(f"begin token: {_shown(left['bos'])} and {_shown(right['bos'])}")
    templates = left["chat_template"], right["chat_template"]
    if None not in templates and templates[0] != templates[1]:
        differences.append(f"chat template: SHA-256 {templates[0][:12]} and {templates[1][:12]}")
    return differences


def _vocabulary_difference(first: Tokenizer, second: Tokenizer) -> str:
    left, right = _vocabulary(first), _vocabulary(second)
    tokens = [token for token in left.keys() | right.keys() if left.get(token) != right.get(token)]
    tokens.sort(key=lambda token: (left.get(token, right.get(token, 0)), token))
    examples = ", ".join(
        f"'{safe_text(token, limit=30)}' {_id(left.get(token))}/{_id(right.get(token))}"
        for token in tokens[:_SHOWN]
    )
    sizes = f"{len(left)} and {len(right)} tokens"
    return f"vocabulary: {sizes}, {len(tokens)} with other ids, such as {examples}"


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    vocabulary = getattr(tokenizer, "get_vocab", dict)()
    return {str(token): int(number) for token, number in vocabulary.items()}


def _special(tokenizer: Tokenizer, name: str) -> list[Any]:
    token = getattr(tokenizer, f"{name}_token", None)
    number = getattr(tokenizer, f"{name}_token_id", None)
    return [None if token is None else str(token), number]


def _template_text(template: Any) -> str:
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _shown(special: list[Any]) -> str:
    token, number = special
    return "none" if token is None else f"'{safe_text(token)}' (id {number})"


def _id(number: int | None) -> str:
    return "absent" if number is None else str(number)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
