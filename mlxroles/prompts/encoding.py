"""Turns a prompt into the text and the token ids that a model sees.

A conversation goes through the tokenizer's chat template, raw text goes in as it is. The begin
token (BOS) stands there exactly once: the tokenizer adds it unless the text already begins with
it, which is also what mlx_lm's own ``generate`` does. The tokenizer is handed in, so this module
needs neither transformers nor MLX.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlxroles.errors import PromptError
from mlxroles.prompts.prompt import Message, Prompt, check_ids
from mlxroles.text import safe_text

_SPACE_PIECE = "▁"
"""How SentencePiece vocabularies write a space; ``decode`` drops a leading one."""


Tools = bool | Literal["schemas"]
"""How a conversation offers its tools: as text, not at all, or through the chat template."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer: mlx_lm's wrapper and every transformers tokenizer have it.

    Looked up when present: ``bos_token``, ``bos_token_id``, ``eos_token_id``, ``chat_template``,
    ``has_chat_template``, ``convert_ids_to_tokens``, ``get_vocab``.
    """

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of the text, with or without the tokens that frame a sequence."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of the token ids."""
        ...

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """The text of the conversation as the instruct model was trained to see it."""
        ...


def render(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    *,
    tools: Tools = True,
    system: str | None = None,
    raw: bool = False,
    note: Callable[[str], None] | None = None,
) -> str:
    """The text that is tokenized.

    Args:
        prompt: raw text or a conversation; ids have no text.
        tokenizer: gives the chat template; not needed for raw text or with ``raw``.
        tools: true puts the prompt's ``tools_text`` before the first user message, false its
            ``plain_text``; ``"schemas"`` puts neither and hands the prompt's tool schemas to the
            chat template, for models that were trained on a tool format of their own.
        system: a system message to put first, in place of one that already stands there. Where
            the template refuses or drops it, it opens the first user message instead, and
            ``note`` is told.
        raw: writes a conversation as ``User: ...`` and ``Assistant: ...`` paragraphs that end in
            ``Assistant:``, without any template.
        note: is called with one line about anything that was done differently than asked.

    Raises:
        PromptError: there is no template, it refuses the conversation, or the options do not fit.
    """
    if prompt.text is not None:
        if system is not None:
            raise PromptError(
                f"prompt '{safe_text(prompt.id)}' is raw text, which has no system message; "
                "write it into the text or use a conversation"
            )
        return prompt.text
    if prompt.messages is None:
        raise PromptError(f"prompt '{safe_text(prompt.id)}' holds token ids, which have no text")
    messages = _opened(prompt, tools)
    if raw and tools == "schemas":
        raise PromptError("tool schemas need a chat template, and raw paragraphs use none")
    if raw:
        return _paragraphs(messages if system is None else _with_system(messages, system))
    template = _template(prompt, tokenizer)
    if tools == "schemas":
        template = _with_schemas(template, messages, prompt)
    if system is None:
        return _apply(template, messages, prompt)
    try:
        text = _apply(template, _with_system(messages, system), prompt)
    except PromptError:
        text = None
    if text is not None and system.strip() in text:
        return text
    if note is not None:
        note(
            f"prompt '{safe_text(prompt.id)}': the chat template takes no system message; "
            "it opens the first user message instead"
        )
    opening = f"{system}\n\n" if system.strip() else ""
    return _apply(template, _first_user_opened(messages, opening), prompt)


def encode(
    prompt: Prompt,
    tokenizer: Tokenizer | None,
    *,
    tools: Tools = True,
    system: str | None = None,
    raw: bool = False,
    vocab_size: int,
    note: Callable[[str], None] | None = None,
) -> NDArray[np.int32]:
    """The token ids of the prompt, checked against the vocabulary of the model.

    An end token that the tokenizer puts behind the text is cut: what follows it is not the
    continuation. For the other arguments see :func:`render`.

    Raises:
        PromptError: see :func:`render`; also no token, an id outside the vocabulary, or a text
            without a tokenizer.
    """
    named = f"prompt '{safe_text(prompt.id)}'"
    if prompt.ids is not None:
        ids: Sequence[int] = prompt.ids
    elif tokenizer is None:
        raise PromptError(
            f"{named} is text, but the model has no tokenizer; give token ids with --ids or "
            "--prompt-ids"
        )
    else:
        text = render(prompt, tokenizer, tools=tools, system=system, raw=raw, note=note)
        ids = _text_ids(text, tokenizer, named)
    check_ids(ids, named, vocab_size=vocab_size)
    return np.asarray(ids, dtype=np.int32)


def token_texts(ids: Sequence[int] | NDArray[np.integer], tokenizer: Tokenizer | None) -> list[str]:
    """The text of each token alone, its leading space included; the id where nothing decodes it.

    A token that is part of a character shows as U+FFFD. The texts are not safe to print as they
    are: see :func:`mlxroles.text.safe_text`.
    """
    if tokenizer is None:
        return [str(int(token)) for token in ids]
    pieces = getattr(tokenizer, "convert_ids_to_tokens", None)
    texts = []
    for token in (int(token) for token in ids):
        text = tokenizer.decode([token])
        piece = pieces(token) if pieces is not None else None
        if isinstance(piece, str) and piece.startswith(_SPACE_PIECE) and not text.startswith(" "):
            spaces = len(piece) - len(piece.lstrip(_SPACE_PIECE))
            text = " " * spaces + text.lstrip(" ")
        texts.append(text)
    return texts


def _text_ids(text: str, tokenizer: Tokenizer, named: str) -> list[int]:
    bos, bos_id = getattr(tokenizer, "bos_token", None), getattr(tokenizer, "bos_token_id", None)
    begins = bool(bos) and text.lstrip().startswith(str(bos))
    ids = list(tokenizer.encode(text, add_special_tokens=not begins))
    eos_id = getattr(tokenizer, "eos_token_id", None)
    if not begins and len(ids) > 1 and ids[-1] == eos_id:
        plain = list(tokenizer.encode(text, add_special_tokens=False))
        if plain[-1:] != [eos_id]:
            ids = ids[:-1]
    if not ids:
        raise PromptError(f"{named} has no token; give a longer text")
    if bos_id is not None and ids[:2] == [bos_id, bos_id]:
        raise PromptError(
            f"{named} begins with the begin token {safe_text(str(bos))} (id {bos_id}) twice; "
            "write it once or leave it out"
        )
    return ids


def _opened(prompt: Prompt, tools: Tools) -> tuple[Message, ...]:
    messages = prompt.messages or ()
    opening = prompt.tools_text if tools else prompt.plain_text
    if opening is None or tools == "schemas":
        return messages
    return _first_user_opened(messages, f"{opening}\n{prompt.separator}\n")


def _first_user_opened(messages: tuple[Message, ...], opening: str) -> tuple[Message, ...]:
    opened = list(messages)
    for index, message in enumerate(messages):
        if message.role == "user":
            opened[index] = message._replace(content=opening + message.content)
            return tuple(opened)
    return (Message("user", opening.rstrip()), *messages)


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    return (Message("system", system), *rest)


def _paragraphs(messages: tuple[Message, ...]) -> str:
    turns = [f"{message.role.capitalize()}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def _template(prompt: Prompt, tokenizer: Tokenizer | None) -> Callable[..., Any]:
    named = f"prompt '{safe_text(prompt.id)}' is a conversation, but"
    if tokenizer is None:
        raise PromptError(f"{named} the model has no tokenizer; give token ids with --prompt-ids")
    has_template = getattr(tokenizer, "has_chat_template", None)
    if has_template is None:
        has_template = getattr(tokenizer, "chat_template", None) is not None
    if not has_template:
        raise PromptError(
            f"{named} this tokenizer has no chat template; name another prompt with --prompt (a "
            "text needs none), or a model whose tokenizer has one"
        )
    return tokenizer.apply_chat_template


def _with_schemas(
    template: Callable[..., Any], messages: tuple[Message, ...], prompt: Prompt
) -> Callable[..., Any]:
    named = f"prompt '{safe_text(prompt.id)}'"
    if not prompt.tools:
        raise PromptError(f"{named} has no tool schemas for the chat template")
    offering = partial(template, tools=[dict(tool) for tool in prompt.tools])
    if _apply(offering, messages, prompt) == _apply(template, messages, prompt):
        raise PromptError(
            f"{named}: the chat template takes no tool schemas; offer the tools as text instead"
        )
    return offering


def _apply(template: Callable[..., Any], messages: tuple[Message, ...], prompt: Prompt) -> str:
    from jinja2 import TemplateError  # comes with mlx_lm; templates need it, nothing else does

    turns = [message._asdict() for message in messages]
    try:
        text = template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, ValueError, TypeError) as error:
        raise PromptError(
            f"prompt '{safe_text(prompt.id)}': the chat template refuses the conversation: "
            f"{safe_text(str(error), limit=200)}"
        ) from error
    return str(text)
