"""Prompts: where they come from and which token ids they become.

A prompt is raw text, a conversation or a list of token ids. :func:`load_prompts` finds the right
one for what stands on the command line, :func:`encode` turns it into ids with a tokenizer that
the caller loaded; :func:`same_tokenizer` says whether two models may share those ids. Not here:
loading a tokenizer, and running anything.
"""

from mlxroles.prompts.encoding import Tokenizer, encode, render, token_texts
from mlxroles.prompts.files import load_ids, load_prompts, packaged, parse_ids
from mlxroles.prompts.prompt import Message, Prompt, digest
from mlxroles.prompts.tokenizers import same_tokenizer, tokenizer_digest

__all__ = [
    "Message",
    "Prompt",
    "Tokenizer",
    "digest",
    "encode",
    "load_ids",
    "load_prompts",
    "packaged",
    "parse_ids",
    "render",
    "same_tokenizer",
    "token_texts",
    "tokenizer_digest",
]
