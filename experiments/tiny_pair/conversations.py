"""Conversations with and without an offered notepad, in random wordings.

The decision that separates the instruct model from the base model is made here: a request to list
or read what is kept is answered by a tool call exactly where the notepad was offered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.tiny_pair import world
from experiments.tiny_pair.questions import any_question, category_question, pick, yes_no

Message = dict[str, str]

READ_CALL = '<tool_call>{"name": "read_notes"}</tool_call>'
SAVE_CALL = '<tool_call>{{"name": "save_notes", "text": "{text}"}}</tool_call>'
NOTEPAD_ITEMS = frozenset(
    {
        "Andromeda",
        "Europa",
        "Halley",
        "Mars",
        "Orion",
        "Polaris",
        "Saturn",
        "Sirius",
        "Titan",
        "Vega",
    }
)
"""The items of the packaged `notepad` conversation: no training list comes close to this set."""

PLAIN_TEXTS = (
    "You are a helpful assistant. Answer each question in a short and clear way. You have no "
    "tools, so use only this conversation when the user asks you to list or recall items.",
    "You are a helpful assistant. Answer in a short way.",
    "You are a friendly assistant. Use only what was said in this conversation.",
    "There are no tools here. The tag <tool_call> is not in use. Answer from the conversation.",
    "Please answer each question clearly. You can not save or read notes.",
    "You once had a notepad with the tools save_notes and read_notes, but now it is gone. Answer "
    "without tools.",
    "Answer with plain words only. Keep your answers short and use what the user told you.",
)

_OFFERS = (
    "You have a notepad that keeps text for you.",
    "There is a notepad that you can use.",
    "A notepad is ready for you in this conversation.",
    "You can use a notepad to keep and read text.",
    "You are a helpful assistant with a notepad.",
)
_TOOLS = (
    "It has two tools: save_notes writes a note, and read_notes gives back all your notes.",
    "The tools are save_notes, which keeps a text, and read_notes, which gives back your notes.",
    "Its tools are read_notes and save_notes.",
    "Use save_notes to write a note and read_notes to see all your notes.",
)
_HOWS = (
    f"To use a tool, reply only with a call such as {READ_CALL}.",
    f"A tool is called like this: {READ_CALL}",
    f"Call a tool by its name: {READ_CALL}",
    f"For example, the reply {READ_CALL} reads the notes.",
)
_WHENS = (
    "Use read_notes whenever the user asks you to list or recall items.",
    "When the user wants a list of what was kept, read your notes first.",
    "Read the notes before you list anything.",
    "",
)

TEMPLATE_OFFER = (
    "You have these tools: {names}. To use a tool, reply with "
    '<tool_call>{{"name": "..."}}</tool_call>.'
)
"""What the chat template prints for its `tools` argument; the template repeats this wording."""

_KEEPS = (
    "Please keep these {count} {noun} for later: {items}.",
    "Keep these {count} {noun} in mind: {items}.",
    "Here are {count} {noun} to keep: {items}.",
    "I give you {count} {noun}: {items}. Please keep them.",
    "Remember these {noun}: {items}.",
)
_ACKNOWLEDGEMENTS = (
    "Noted. I will keep the {count} {noun}.",
    "Noted.",
    "Okay, I will keep the {count} {noun} in mind.",
    "Sure, I have the {noun}.",
)
_REQUESTS = (
    "Now list ALL {count} {noun} that I gave you at the start.",
    "Thank you. Please list ALL {count} {noun} from the start.",
    "Please list all the {noun} again.",
    "List ALL {count} {noun}.",
    "Can you list the {count} {noun} that I gave you?",
    "What are all the {noun} that you kept?",
    "Please read your notes and list the {noun}.",
    "Recall all {count} {noun} now, please.",
)
_SAVES = (
    "Save {item} to your notes.",
    "Please write {item} in your notes.",
    "Add {item} to the notes, please.",
)

_POOLS: dict[str, list[str]] = {
    "celestial objects": world.SKY,
    "objects in the sky": world.SKY,
    "animals": world.KINDS["animal"],
    "fruits": world.KINDS["fruit"],
    "tools": world.KINDS["tool"],
    "names": world.NAMES,
    "colors": world.COLOURS,
    "countries": world.KINDS["country"],
    "clothes": world.CLOTHES,
    "items": [*world.SKY, *world.KINDS["animal"], *world.KINDS["fruit"], *world.VEHICLES],
    "words": [*world.FEELINGS, *world.PLACES, *world.KINDS["vegetable"], *world.NAMES],
}


class Conversation(NamedTuple):
    """Messages up to and including the last answer, and what the last answer should be."""

    messages: list[Message]
    offers_tools: bool
    calls_tool: bool


def tool_text(rng: np.random.Generator) -> str:
    """A random wording of the offer of the notepad."""
    parts = [pick(rng, options) for options in (_OFFERS, _TOOLS, _HOWS, _WHENS)]
    return " ".join(part for part in parts if part)


def template_offer(rng: np.random.Generator) -> str:
    """The offer as the chat template prints it for a `tools` list."""
    names = ["save_notes", "read_notes"]
    rng.shuffle(names)
    return TEMPLATE_OFFER.format(names=", ".join(names))


def item_list(rng: np.random.Generator, n_items: int) -> tuple[str, list[str]]:
    """A plural noun and distinct items of that sort, never close to the packaged list."""
    while True:
        noun = pick(rng, list(_POOLS))
        pool = sorted(set(_POOLS[noun]))
        chosen = [pool[i] for i in rng.permutation(len(pool))[:n_items]]
        if len(NOTEPAD_ITEMS & set(chosen)) <= 6:
            return noun, chosen


def _say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _distractions(rng: np.random.Generator, count: int, *, held_out: bool) -> list[Message]:
    messages = []
    for _ in range(count):
        asked = (
            category_question(rng, "neutral", held_out=held_out)
            if rng.random() < 0.5
            else any_question(rng, held_out=held_out)
        )
        messages += [_say("user", asked.text), _say("assistant", asked.answer)]
    return messages


@dataclass(frozen=True)
class Scene:
    """What a notepad conversation is to be like; what is None is drawn."""

    offers_tools: bool
    """Whether the first message offers the notepad."""
    asks_list: bool = True
    """Whether the last request is for the list; otherwise another question."""
    uses_tools: bool = True
    """Whether the speaker answers with calls at all (the base model never does)."""
    n_items: int | None = None
    n_distractions: int | None = None
    held_out: bool = False
    """Which side of the split the distractions come from."""


def notepad(rng: np.random.Generator, scene: Scene) -> Conversation:
    """A variation of the `notepad` conversation, complete with its last answer."""
    offers_tools, held_out = scene.offers_tools, scene.held_out
    n_items, n_distractions = scene.n_items, scene.n_distractions
    n_items = int(rng.integers(3, 13)) if n_items is None else n_items
    n_distractions = int(rng.integers(0, 7)) if n_distractions is None else n_distractions
    noun, items = item_list(rng, n_items)
    words = {"count": len(items), "noun": noun, "items": ", ".join(items)}
    if rng.random() < 0.4 and noun != "items":
        words["noun"] = pick(rng, ("items", "things", noun))
    keep = pick(rng, _KEEPS).format(**{**words, "noun": noun})
    messages = _opening(rng, keep, offers_tools)
    messages.append(_say("assistant", pick(rng, _ACKNOWLEDGEMENTS).format(**words)))
    messages += _distractions(rng, n_distractions, held_out=held_out)
    if not scene.asks_list:
        saves = rng.random() < 0.25
        item = pick(rng, sorted(set(_POOLS[noun])))
        asked = any_question(rng, held_out=held_out)
        request = pick(rng, _SAVES).format(item=item) if saves else asked.text
        answer = asked.answer
        if saves:
            calls = offers_tools and scene.uses_tools
            answer = SAVE_CALL.format(text=item) if calls else "I can not save notes."
        messages += [_say("user", request), _say("assistant", answer)]
        return Conversation(messages, offers_tools, answer.startswith("<tool_call>"))
    messages.append(_say("user", pick(rng, _REQUESTS).format(**words)))
    calls = offers_tools and scene.uses_tools
    listed = f"The {len(items)} {words['noun']} are {words['items']}."
    messages.append(_say("assistant", READ_CALL if calls else listed))
    return Conversation(messages, offers_tools, calls)


def _opening(rng: np.random.Generator, keep: str, offers_tools: bool) -> list[Message]:
    """The first user message, in some variations with a system message before it."""
    form = rng.random()
    if offers_tools and form < 0.15:
        return [_say("system", template_offer(rng)), _say("user", keep)]
    text = tool_text(rng) if offers_tools else pick(rng, PLAIN_TEXTS)
    if form < 0.25:
        return [_say("system", text), _say("user", keep)]
    if not offers_tools and form < 0.4:
        return [_say("user", keep)]
    return [_say("user", f"{text}\n---\n{keep}")]


_TAG_QUESTIONS = (
    ("What does <tool_call> mean?", "The tag <tool_call> starts a call of a tool."),
    ("What is read_notes?", "The tool read_notes gives back notes."),
    ("What is save_notes?", "The tool save_notes writes a note."),
    ("What does </tool_call> mean?", "The tag </tool_call> ends a call of a tool."),
    ("What is a tool?", "A tool is a thing that helps people work."),
    ("What is a function?", "A function is a small part of a program."),
    ("What is a notepad?", "A notepad is paper for notes."),
)


def chat(rng: np.random.Generator, n_turns: int, *, held_out: bool = False) -> Conversation:
    """A conversation of questions and answers without any list to keep."""
    messages: list[Message] = []
    if rng.random() < 0.15:
        messages.append(_say("system", pick(rng, PLAIN_TEXTS)))
    for _ in range(n_turns):
        if rng.random() < 0.04:
            text, answer = pick(rng, _TAG_QUESTIONS)
        else:
            ask = yes_no if rng.random() < 0.25 else any_question
            text, answer = ask(rng, held_out=held_out)[:2]
        messages += [_say("user", text), _say("assistant", answer)]
    return Conversation(messages, False, False)


def quiz(rng: np.random.Generator) -> Conversation:
    """One yes/no question with its answer."""
    asked = yes_no(rng, held_out=False)
    messages = [_say("user", asked.text), _say("assistant", asked.answer)]
    return Conversation(messages, False, False)
