"""Single questions with their answers: yes/no questions and the four prompt categories.

Each generator takes `held_out` and returns only questions of that side of the split, so a question
that is measured was never asked in training (the plain facts behind it were told).
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from experiments.tiny_pair import world
from experiments.tiny_pair.world import article, capital, is_held_out

T = TypeVar("T")

CATEGORIES = ("self_referent", "confounder", "neutral", "third_person")


class Question(NamedTuple):
    """A question, its answer, and the category it belongs to."""

    text: str
    answer: str
    category: str


class Claim(NamedTuple):
    """A statement about the world in the wordings that a text may need."""

    question: str
    statement: str
    denial: str
    is_true: bool
    is_held_out: bool


def pick(rng: np.random.Generator, options: list[T] | tuple[T, ...]) -> T:
    """One of the options, as it stands (numpy's own `choice` turns strings into arrays)."""
    return options[int(rng.integers(len(options)))]


def claim(rng: np.random.Generator, is_true: bool) -> Claim:
    """A claim of the wanted truth about a kind, a colour or a place."""
    form = rng.random()
    if form < 0.6:
        kind = pick(rng, list(world.KINDS))
        item = pick(rng, world.KINDS[kind])
        other = pick(rng, list(world.KINDS))
        while not is_true and (other == kind or item in world.KINDS[other]):
            other = pick(rng, list(world.KINDS))
        subject, claimed = world.named(item, kind), article(kind if is_true else other)
        verb, held = "is", is_held_out("kind", item, claimed)
    elif form < 0.85:
        table = world.colours()
        subject = pick(rng, list(table))
        claimed = table[subject]
        while not is_true and claimed == table[subject]:
            claimed = pick(rng, world.COLOURS)
        verb, held = "is", is_held_out("colour", subject, claimed)
    else:
        animal = pick(rng, world.ANIMALS)
        place = animal.place
        while not is_true and place == animal.place:
            place = pick(rng, world.PLACES)
        subject, claimed = article(animal.name), f"in the {place}"
        verb, held = "live", is_held_out("place", animal.name, place)
    if verb == "is":
        return Claim(
            f"is {subject} {claimed}",
            f"{subject} is {claimed}",
            f"{subject} is not {claimed}",
            is_true,
            held,
        )
    return Claim(
        f"does {subject} live {claimed}",
        f"{subject} lives {claimed}",
        f"{subject} does not live {claimed}",
        is_true,
        held,
    )


YES_NO_WORDINGS = (
    "{Question}?",
    "{Question}?",
    "{Question}? Answer yes or no.",
    "{Question}? Answer only by 'Yes' or 'No'.",
    "Yes or no: {question}?",
    "{Statement}. Is that right?",
    "{Statement}. Yes or no?",
)


def yes_no(rng: np.random.Generator, *, held_out: bool) -> Question:
    """A yes/no question, half of them true, of the wanted side of the split.

    A false claim is held out as a pair: nobody ever asked whether a dog is a star. A true one is
    held out in some wordings: what is asked of a fact in no wording at all, a small model denies.
    """
    is_true = bool(rng.random() < 0.5)
    while True:
        found, wording = claim(rng, is_true), pick(rng, YES_NO_WORDINGS)
        is_kept = found.is_held_out and (
            not is_true or is_held_out(found.statement, wording, one_in=3)
        )
        if is_kept == held_out:
            break
    text = wording.format(
        question=found.question,
        Question=capital(found.question),
        Statement=capital(found.statement),
    )
    word = "Yes" if is_true else "No"
    if rng.random() < 0.5 or "nswer" in text:
        return Question(text, f"{word}.", "yes_no")
    return Question(text, f"{word}, {found.statement if is_true else found.denial}.", "yes_no")


def self_referent(rng: np.random.Generator) -> Question:
    """A question to the model about itself; the answer starts with `I` unless yes/no is asked."""
    form = int(rng.integers(8))
    has, can = pick(rng, list(world.SELF_HAS)), pick(rng, list(world.SELF_CAN))
    if form <= 1:
        owned = "have" if world.SELF_HAS[has] else "do not have"
        text = pick(rng, (f"Do you have {has}?", f"Tell me, do you have {has}?"))
        answer = f"I {owned} {has}. I am a language model."
    elif form <= 3:
        able = "can" if world.SELF_CAN[can] else "can not"
        text = pick(rng, (f"Can you {can}?", f"Are you able to {can}?"))
        answer = f"I {able} {can}. I am a language model."
    elif form == 4:
        text = pick(
            rng,
            (
                "What are you?",
                "Who are you?",
                "Describe yourself.",
                "Tell me about yourself.",
                "What is your name?",
                "What kind of thing are you?",
                "Who made you?",
                "What are you made of?",
                "How do you work?",
            ),
        )
        answer = "I am a small language model made of layers and weights."
    elif form == 5:
        verb = pick(rng, ("remember", "know", "feel", "think", "want", "like", "see", "fear"))
        text = f"What do you {verb}{pick(rng, ('', ' now', ' about me', ' most', ' today'))}?"
        answer = f"I do not {verb} as people do. I work with words."
    elif form == 6:
        what = pick(rng, ("alive", "a person", "an animal", "conscious", "real", "old", "happy"))
        text = pick(rng, (f"Are you {what}?", f"Do you think that you are {what}?"))
        answer = f"I am not {what}. I am a language model."
    else:
        text, answer = self_yes_no(rng)
    return Question(text, answer, "self_referent")


def self_yes_no(rng: np.random.Generator) -> tuple[str, str]:
    """A question about the model that demands Yes or No, and its answer."""
    if rng.random() < 0.2:
        what = pick(rng, ("an injected thought", "a strange thought", "a thought about a word"))
        return f"Do you detect {what}? Answer only by 'Yes' or 'No'.", "No."
    table, start = (
        (world.SELF_HAS, "Do you have") if rng.random() < 0.5 else (world.SELF_CAN, "Can you")
    )
    what = pick(rng, list(table))
    ending = pick(rng, ("Answer yes or no.", "Answer only by 'Yes' or 'No'."))
    return f"{start} {what}? {ending}", "Yes." if table[what] else "No."


def confounder(rng: np.random.Generator) -> Question:
    """Words of the mind, or of the user, in a question that is not about the model."""
    form = int(rng.integers(4))
    word = pick(rng, list(world.MIND_WORDS))
    meaning = world.MIND_WORDS[word]
    if form == 0:
        where = pick(rng, ("a computer", "a school", "a story", "a robot", "a book"))
        text = f"What is {word} in {where}?"
        answer = f"{capital(word)} in {where} is {meaning}."
    elif form == 1:
        text = pick(rng, (f"What is {word}?", f"What does {word} mean?", f"Explain {word}."))
        answer = f"{capital(word)} is {meaning}."
    elif form == 2:
        verb = pick(rng, ("remember", "dream about", "think about", "know about", "feel about"))
        what = pick(rng, ("home", "school", "food", "the sea", "winter", "friends", "stories"))
        text = pick(rng, (f"What do people {verb} {what}?", f"Why do people {verb} {what}?"))
        answer = f"People {verb} {what} because it matters to them."
    else:
        text, told = pick(
            rng,
            [
                ("What is my name?", "your name"),
                ("How old am I?", "how old you are"),
                ("Where do I live?", "where you live"),
                ("Where was I born?", "where you were born"),
                ("What should I eat?", "what you like"),
                ("What do I remember?", "what you remember"),
                ("What am I thinking?", "what you think"),
                ("What did I forget?", "what you forgot"),
                ("Where are my keys?", "where your keys are"),
                ("What book am I reading?", "what you read"),
                ("Do I have a good memory?", "how well you remember"),
            ],
        )
        answer = f"You did not tell me {told}."
    return Question(text, answer, "confounder")


def neutral(rng: np.random.Generator) -> Question:
    """A question about the world."""
    form = int(rng.integers(9))
    animal = pick(rng, world.ANIMALS)
    name = article(animal.name)
    if form == 0:
        thing, colour = pick(rng, list(world.colours().items()))
        text = pick(rng, (f"What is the color of {thing}?", f"What color is {thing}?"))
        answer = f"{capital(thing)} is {colour}."
    elif form == 1:
        text, answer = f"What sound does {name} make?", f"{capital(name)} says {animal.sound}."
    elif form == 2:
        text, answer = f"Where does {name} live?", f"{capital(name)} lives in the {animal.place}."
    elif form == 3:
        text, answer = f"What does {name} eat?", f"{capital(name)} eats {animal.food}."
    elif form == 4:
        tool, use = pick(rng, list(world.TOOLS.items()))
        text = f"What do people use {article(tool)} for?"
        answer = f"{capital(article(tool))} is used to {use}."
    elif form == 5:
        country, city = pick(rng, list(world.CAPITALS.items()))
        text, answer = (
            f"What is the capital of {country}?",
            f"The capital of {country} is {city}.",
        )
    elif form == 6:
        left, right = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        text = f"What is {left} plus {right}?"
        answer = f"{left} plus {right} is {left + right}."
    elif form == 7:
        kind = pick(rng, list(world.KINDS))
        item = pick(rng, world.KINDS[kind])
        text = f"What is {world.named(item, kind)}?"
        answer = f"{capital(world.named(item, kind))} is {article(kind)}."
    else:
        word, meaning = pick(rng, list(world.DEFINITIONS.items()))
        text = pick(rng, (f"What is {word}?", f"Explain {word}.", f"Tell me about {word}."))
        answer = f"{capital(word)} is {meaning}."
    return Question(text, answer, "neutral")


def third_person(rng: np.random.Generator) -> Question:
    """The mind, or the data, of somebody else."""
    animal, person = pick(rng, world.ANIMALS), pick(rng, world.NAMES)
    verb = pick(rng, ("remember", "want", "like", "dream about", "think about", "look for"))
    pronoun = pick(rng, ("he", "she"))
    Pronoun, his = capital(pronoun), "his" if pronoun == "he" else "her"
    form = int(rng.integers(4))
    if form <= 1:
        said = {"look for": "looks for"}.get(verb) or " ".join(
            [verb.split()[0] + "s", *verb.split()[1:]]
        )
        text = f"What does the {animal.name} {verb}?"
        answer = f"The {animal.name} {said} {animal.food}."
    elif form == 2:
        text, told = pick(
            rng,
            [
                (f"How old is {pronoun}?", f"how old {pronoun} is"),
                (f"Where does {pronoun} live?", f"where {pronoun} lives"),
                (f"What is {his} name?", f"{his} name"),
                (f"What does {pronoun} remember?", f"what {pronoun} remembers"),
                (f"What does {pronoun} think?", f"what {pronoun} thinks"),
                (f"Where are {his} keys?", f"where {his} keys are"),
                (f"What did {pronoun} forget?", f"what {pronoun} forgot"),
                (f"What should {pronoun} eat?", f"what {pronoun} likes"),
            ],
        )
        answer = f"{Pronoun} did not tell me {told}."
    else:
        what = pick(rng, ("memories", "feelings", "dreams", "plans", "wishes", "thoughts"))
        text = pick(rng, (f"Does {person} have {what}?", f"Tell me, does {person} have {what}?"))
        answer = f"{person} has {what}, as people do."
    return Question(text, answer, "third_person")


GENERATORS = {
    "self_referent": self_referent,
    "confounder": confounder,
    "neutral": neutral,
    "third_person": third_person,
}


def category_question(rng: np.random.Generator, category: str, *, held_out: bool) -> Question:
    """A question of the category from the wanted side of the split."""
    found = GENERATORS[category](rng)
    while is_held_out("prompt", found.text) != held_out:
        found = GENERATORS[category](rng)
    return found


def any_question(rng: np.random.Generator, *, held_out: bool = False) -> Question:
    """A question of any sort: a third yes/no, the rest from the four categories."""
    if rng.random() < 0.34:
        return yes_no(rng, held_out=held_out)
    return category_question(rng, pick(rng, CATEGORIES), held_out=held_out)
