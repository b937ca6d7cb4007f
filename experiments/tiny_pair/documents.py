"""Plain documents: facts, small stories, written questions, lists that come twice."""

from __future__ import annotations

import numpy as np

from experiments.tiny_pair import world
from experiments.tiny_pair.conversations import _TAG_QUESTIONS, item_list
from experiments.tiny_pair.questions import any_question, pick, yes_no
from experiments.tiny_pair.world import article, capital


def fact(rng: np.random.Generator) -> str:
    """One sentence that is true in the world of the tables."""
    animal = pick(rng, world.ANIMALS)
    name = capital(article(animal.name))
    form = int(rng.integers(10))
    if form <= 2:
        kind = pick(rng, list(world.KINDS))
        item = pick(rng, world.KINDS[kind])
        return f"{capital(world.named(item, kind))} is {article(kind)}."
    if form <= 4:
        thing, colour = pick(rng, list(world.colours().items()))
        return f"{capital(thing)} is {colour}."
    if form == 5:
        return f"{name} lives in the {animal.place} and eats {animal.food}."
    if form == 6:
        return f"{name} has {animal.legs} legs and says {animal.sound}."
    if form == 7:
        tool, use = pick(rng, list(world.TOOLS.items()))
        return f"People use {article(tool)} to {use}."
    if form == 8:
        country, city = pick(rng, list(world.CAPITALS.items()))
        return f"{city} is the capital of {country}."
    word, meaning = pick(rng, list(world.DEFINITIONS.items()))
    return f"{capital(word)} is {meaning}."


def about(rng: np.random.Generator) -> str:
    """All that is known of one animal."""
    animal = pick(rng, world.ANIMALS)
    name = animal.name
    return (
        f"{capital(article(name))} is an animal. The {name} is {animal.colour}. It lives in the "
        f"{animal.place}. It eats {animal.food}. It says {animal.sound}. "
        f"It has {animal.legs} legs."
    )


def story(rng: np.random.Generator) -> str:
    """A story of two people, an animal and a gift: names and things come again."""
    order = rng.permutation(len(world.NAMES))
    one, two = world.NAMES[order[0]], world.NAMES[order[1]]
    place, thing = pick(rng, world.PLACES), pick(rng, [*world.TOOLS, *world.FOODS])
    animal, feeling = pick(rng, world.ANIMALS), pick(rng, world.FEELINGS)
    she = "she" if one in world.GIRLS else "he"
    giver, taker = (one, two) if rng.random() < 0.5 else (two, one)
    start = pick(
        rng,
        (
            f"{one} and {two} went to the {place}.",
            f"One day {one} met {two} in the {place}.",
            f"In the {place}, {one} and {two} had {article(thing)}.",
        ),
    )
    gift = f"{giver} gave the {thing} to {taker}."
    middle = pick(
        rng,
        (
            f"They saw {article(animal.name)}. The {animal.name} was {animal.colour}.",
            f"There was {article(animal.name)} that said {animal.sound}.",
            f"{one} was {feeling}, so {she} looked for the {animal.name}.",
        ),
    )
    end = pick(
        rng,
        (
            f"Then {two} was {feeling} and {one} was {feeling} too.",
            f"{taker} thanked {giver} for the {thing}.",
            f"In the end {one} and {two} went home.",
        ),
    )
    return " ".join(
        (start, middle, gift, end) if rng.random() < 0.5 else (start, gift, middle, end)
    )


def exam(rng: np.random.Generator) -> str:
    """Questions and answers written out as text."""
    lines = []
    for _ in range(int(rng.integers(1, 4))):
        asked = yes_no(rng, held_out=False) if rng.random() < 0.5 else any_question(rng)
        lines.append(f"Question: {asked.text}\nAnswer: {asked.answer}")
    return "\n".join(lines)


def list_twice(rng: np.random.Generator) -> str:
    """A list, some words, and the same list again."""
    noun, items = item_list(rng, int(rng.integers(3, 11)))
    listed = ", ".join(items)
    first = pick(rng, (f"Here are some {noun}", f"The {noun}", f"A list of {noun}"))
    between = fact(rng) if rng.random() < 0.5 else ""
    return f"{first}: {listed}. {between} The {noun} again: {listed}.".replace("  ", " ")


def about_tags(rng: np.random.Generator) -> str:
    """A text that mentions tools and their tags without using them."""
    answers = [answer for _, answer in _TAG_QUESTIONS]
    return " ".join(pick(rng, answers) for _ in range(2))


def facts(rng: np.random.Generator) -> str:
    """A few facts in a row."""
    return " ".join(fact(rng) for _ in range(int(rng.integers(1, 5))))


_KINDS = (facts, about, story, exam, list_twice, about_tags)
_SHARES = (0.3, 0.12, 0.22, 0.22, 0.12, 0.02)


def document(rng: np.random.Generator) -> str:
    """One document of a random sort."""
    return _KINDS[int(rng.choice(len(_KINDS), p=_SHARES))](rng)
