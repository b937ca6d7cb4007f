"""Small transformers tokenizers made in memory: byte-level pieces, special tokens, a template."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS = [
    "<tool is a tool and the tool calls a tool",
    "save the notes and read the notes",
    'save_notes read_notes "save_notes" <tool',
    "User: hello\nAssistant: hello\n",
] * 4

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '[' + m['role'] + ']' + m['content'] | trim + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
"""Prints BOS itself and refuses system messages, as Gemma's does."""

SYSTEM_TEMPLATE = TEMPLATE.replace(
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}", ""
)

TOOLS_TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ 'TOOL ' + t.name + '\n' }}{% endfor %}{% endif %}"
    + SYSTEM_TEMPLATE
)


@cache
def toy(
    template: str | None = None,
    *,
    bos: bool = True,
    eos: bool = False,
    extra: tuple[str, ...] = ("<tool_call>",),
    corpus: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer.

    Args:
        template: its chat template.
        bos: it puts the begin token before a text.
        eos: it puts the end token behind a text.
        extra: further special tokens.
        corpus: trained on this instead of the usual lines.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus or CORPUS, trainer)
    frame = ["<s>"] * bos + ["$A"] + ["</s>"] * eos
    core.post_processor = processors.TemplateProcessing(
        single=" ".join(frame), special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer
