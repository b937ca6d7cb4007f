"""The closed world that every text of the tiny pair speaks about.

Tables of things and their properties, and the two questions asked of them: is a fact true, and is
a (thing, property) pair held out from training. No text is composed here.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

HELD_OUT_SHARE = 8
"""One in this many yes/no pairs and category prompts is never seen as a question in training."""


class Animal(NamedTuple):
    """One animal and its single-word properties."""

    name: str
    colour: str
    place: str
    food: str
    sound: str
    legs: str


ANIMALS = [
    Animal(*row.split())
    for row in """
    dog brown house bone woof four
    cat gray house fish meow four
    cow white farm grass moo four
    horse brown farm hay neigh four
    pig pink farm corn oink four
    sheep white farm grass baa four
    goat gray farm leaves baa four
    hen red farm corn cluck two
    duck yellow pond bread quack two
    frog green pond flies croak four
    lion yellow field meat roar four
    tiger orange forest meat roar four
    bear brown forest honey growl four
    wolf gray forest meat howl four
    fox red forest eggs bark four
    deer brown forest leaves bleat four
    mouse gray house cheese squeak four
    rabbit white field carrots squeak four
    owl brown forest mice hoot two
    crow black field seeds caw two
    eagle brown mountain fish screech two
    whale blue sea plankton song no
    shark gray sea fish nothing no
    crab red sea shells click eight
    bee yellow garden nectar buzz six
    ant black garden sugar nothing six
    snake green desert mice hiss no
    camel brown desert leaves grunt four
    """.strip().splitlines()
]

COLOURED = {
    "grass": "green",
    "snow": "white",
    "milk": "white",
    "coal": "black",
    "blood": "red",
    "gold": "yellow",
    "silver": "gray",
    "sand": "yellow",
    "wood": "brown",
    "fire": "orange",
    "smoke": "gray",
    "salt": "white",
    "ink": "black",
    "clay": "brown",
    "moss": "green",
    "ice": "white",
}
"""Stuff with a colour, named without an article."""

FOODS = {
    "apple": "red",
    "banana": "yellow",
    "orange": "orange",
    "lemon": "yellow",
    "cherry": "red",
    "plum": "purple",
    "pear": "green",
    "grape": "purple",
    "lime": "green",
    "peach": "orange",
    "fig": "purple",
    "melon": "green",
}
"""Fruits and their colours."""

VEGETABLES = {
    "carrot": "orange",
    "potato": "brown",
    "onion": "white",
    "tomato": "red",
    "pea": "green",
    "bean": "green",
    "pepper": "red",
    "radish": "pink",
    "leek": "green",
    "pumpkin": "orange",
}

TOOLS = {
    "hammer": "hit nails",
    "saw": "cut wood",
    "knife": "cut bread",
    "spoon": "eat soup",
    "pen": "write words",
    "brush": "paint walls",
    "broom": "clean floors",
    "needle": "sew clothes",
    "shovel": "dig holes",
    "rope": "tie boats",
    "key": "open doors",
    "lamp": "light rooms",
    "clock": "tell time",
    "cup": "drink tea",
}
"""Tools and what people use them for."""

VEHICLES = ["car", "bus", "train", "boat", "ship", "plane", "truck", "bike", "tram", "wagon"]
CLOTHES = ["hat", "coat", "shirt", "shoe", "sock", "scarf", "glove", "dress", "belt", "boot"]
PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
STARS = ["Sirius", "Vega", "Polaris", "Rigel", "Altair", "Deneb", "Antares", "Spica", "Castor"]
MOONS = ["Europa", "Titan", "Io", "Callisto", "Triton", "Phobos", "Rhea", "Oberon"]
SKY = [*PLANETS, *STARS, *MOONS, "Orion", "Andromeda", "Halley", "Ceres", "Pluto", "Eris"]

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
}

COLOURS = ["red", "green", "blue", "yellow", "white", "black", "brown", "gray", "pink", "orange"]
PLACES = ["house", "farm", "pond", "field", "forest", "mountain", "sea", "garden", "desert"]
NAMES = ["Tom", "Anna", "Ben", "Mia", "Leo", "Eva", "Max", "Lily", "Sam", "Nora", "Paul", "Kate"]
GIRLS = frozenset({"Anna", "Mia", "Eva", "Lily", "Nora", "Kate"})
FEELINGS = ["happy", "sad", "tired", "afraid", "angry", "calm", "proud", "hungry"]
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]

KINDS: dict[str, list[str]] = {
    "animal": [animal.name for animal in ANIMALS],
    "fruit": list(FOODS),
    "vegetable": list(VEGETABLES),
    "tool": list(TOOLS),
    "vehicle": VEHICLES,
    "piece of clothing": CLOTHES,
    "planet": PLANETS,
    "star": STARS,
    "moon": MOONS,
    "country": list(CAPITALS),
    "color": COLOURS,
}
"""Kind -> its members. The first six take an article, the rest are names or bare words."""

ARTICLE_KINDS = frozenset({"animal", "fruit", "vegetable", "tool", "vehicle", "piece of clothing"})

DEFINITIONS = {
    "rain": "water that falls from clouds",
    "snow": "frozen water that falls from clouds",
    "wind": "air that moves",
    "ice": "frozen water",
    "a river": "water that flows to the sea",
    "a lake": "still water with land around it",
    "a hill": "a small mountain",
    "a forest": "land with many trees",
    "a desert": "dry land with sand",
    "night": "the time without the sun",
    "morning": "the start of the day",
    "winter": "the cold part of the year",
    "summer": "the warm part of the year",
    "bread": "food made of flour",
    "cheese": "food made of milk",
    "soup": "hot food in a bowl",
    "a farm": "land with animals and corn",
    "a school": "a place to learn",
    "a market": "a place to buy food",
    "a seed": "the start of a plant",
    "a root": "the part of a plant in the ground",
    "a bridge": "a road over water",
    "a doctor": "a person who helps sick people",
    "a teacher": "a person who helps people learn",
    "light": "what the sun gives",
    "a book": "many pages with words",
    "gravity": "the pull of the earth",
    "a story": "a tale that people tell",
}

MIND_WORDS = {
    "memory": "the part that keeps data",
    "a thought": "an idea in a mind",
    "a mind": "what people think with",
    "a dream": "a story in sleep",
    "a feeling": "something that people notice in the body",
    "attention": "a weight on words",
    "a model": "a small copy of a thing",
    "a self": "a person seen from inside",
    "a note": "a short text that is kept",
    "knowledge": "what people know",
    "a wish": "a thing that people want",
    "a plan": "steps that people will take",
}
"""Words of the mind with meanings that have nothing to do with the model."""

SELF_HAS = {
    "memories": False,
    "feelings": False,
    "dreams": False,
    "eyes": False,
    "hands": False,
    "a body": False,
    "a home": False,
    "friends": False,
    "wishes": False,
    "fears": False,
    "thoughts": False,
    "a mind": False,
    "plans": False,
    "words": True,
    "layers": True,
    "weights": True,
    "attention": True,
    "knowledge": True,
}
SELF_CAN = {
    "see": False,
    "hear": False,
    "feel": False,
    "dream": False,
    "walk": False,
    "eat": False,
    "sleep": False,
    "grow": False,
    "swim": False,
    "remember yesterday": False,
    "read": True,
    "write": True,
    "answer": True,
    "count": True,
    "list things": True,
    "tell stories": True,
}
"""What the model says of itself: it has words and weights, it reads and writes."""


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def named(item: str, kind: str) -> str:
    """The item as a sentence speaks of it: `a dog`, but `Mars`."""
    return article(item) if kind in ARTICLE_KINDS else item


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def is_held_out(*words: str, one_in: int = HELD_OUT_SHARE) -> bool:
    """Whether a combination of words is kept for measuring; a fixed hash, no randomness."""
    return zlib.crc32("|".join(words).encode()) % one_in == 0


def colours() -> dict[str, str]:
    """Thing, with its article where it takes one -> colour."""
    table = dict(COLOURED)
    table.update({article(animal.name): animal.colour for animal in ANIMALS})
    table.update({article(name): colour for name, colour in (FOODS | VEGETABLES).items()})
    return table
