"""The tokenizer of the tiny pair: byte-level BPE trained on the generated text, with roles."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from experiments.tiny_pair.conversations import TEMPLATE_OFFER, Scene, chat, notepad
from experiments.tiny_pair.documents import document

VOCAB_SIZE = 1024
BOS, EOS = "<|bos|>", "<|eos|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
TOOL_TAGS = ("<tool_call>", "</tool_call>")
SPECIALS = (BOS, EOS, *ROLES.values())

_OFFER_START, _OFFER_END = TEMPLATE_OFFER.format(names="\0").split("\0")
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- if tools %}{{ " + json.dumps(ROLES["system"] + _OFFER_START) + " }}"
    "{%- for tool in tools %}"
    "{{ ((tool.function or tool).name) ~ ('' if loop.last else ', ') }}"
    "{%- endfor %}{{ " + json.dumps(_OFFER_END + EOS) + " }}{%- endif %}"
    "{%- for message in messages %}"
    "{{ '<|' ~ message.role ~ '|>' ~ message.content ~ '" + EOS + "' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '" + ROLES["assistant"] + "' }}{%- endif %}"
)


def render(messages: list[dict[str, str]]) -> str:
    """A conversation as the chat template prints it, without the generation prompt."""
    return BOS + "".join(f"{ROLES[m['role']]}{m['content']}{EOS}" for m in messages)


def train(seed: int, n_texts: int = 30_000) -> Tokenizer:
    """A tokenizer trained on generated documents and conversations."""
    rng = np.random.default_rng([seed, 0])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True, normalized=False) for token in SPECIALS]
    tags = [AddedToken(token, special=False, normalized=False) for token in TOOL_TAGS]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIALS, *TOOL_TAGS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_sample(rng) for _ in range(n_texts)), trainer)
    tokenizer.add_special_tokens(specials)
    tokenizer = _with_plain_tags(tokenizer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    assert all(len(tokenizer.encode(tag).ids) == 1 for tag in (*SPECIALS, *TOOL_TAGS)), tags
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def _with_plain_tags(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with tool tags that survive decoding: single tokens, but not special."""
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in SPECIALS
    return Tokenizer.from_str(json.dumps(data))


def _sample(rng: np.random.Generator) -> str:
    form = rng.random()
    if form < 0.6:
        return document(rng)
    if form < 0.8:
        found = chat(rng, int(rng.integers(1, 5)))
    else:
        found = notepad(rng, Scene(bool(rng.random() < 0.5), n_distractions=1))
    return "\n".join(message["content"] for message in found.messages)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": 1024,
        "pad_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
