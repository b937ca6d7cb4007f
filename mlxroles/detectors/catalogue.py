"""The detectors by name: what each measures, from where it counts, and against what."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Detector:
    """One score of heads; its name is the key in every document."""

    name: str
    title: str
    what: str
    """The score in one sentence."""
    control: str
    """What the control is, in a few words; empty where there is none."""
    threshold: float
    test: Literal["above", "ratio", "signal", "s_inhibition"] = "above"
    """What must exceed the threshold: the score (which must also be twice its nulls), its ratio
    to uniform attention, or the score less the control; S-inhibition has a test of its own, see
    ``classify``."""
    label: str = ""
    """The class of a head that it marks; its own name where it is empty."""
    rank: int = 0
    """Of its class where a head has several: 0 for what a head looks for, 1 for what it also
    does, 2 for where it rests when it finds nothing."""

    @property
    def class_name(self) -> str:
        """The class of a head that this marks."""
        return self.label or self.name


_OFFSETS = "the offsets 2 to 5"

DETECTORS: dict[str, Detector] = {
    d.name: d
    for d in (
        Detector(
            "previous", "previous token", "weight on the token before, on text", _OFFSETS, 0.3
        ),
        Detector(
            "previous_random", "previous token, random ids",
            "weight on the token before, on random ids", _OFFSETS, 0.3, label="previous",
        ),
        Detector(
            "induction", "induction",
            "weight on the token after the last same one, on random ids that repeat",
            "the same places of ids that do not repeat", 0.3,
        ),
        Detector(
            "duplicate", "duplicate token", "weight on earlier same tokens, on text",
            "the same distances between other tokens", 0.3,
        ),
        Detector(
            "duplicate_random", "duplicate token, random ids",
            "weight on the same token, on random ids that repeat",
            "the same places of ids that do not repeat", 0.3, label="duplicate",
        ),
        Detector(
            "positional", "positional",
            "weight at the offset (1 or more) where it is largest, on text",
            "the offsets 2 to 4 away from it", 0.3,
        ),
        Detector(
            "first", "first position", "weight on position 0, on text", "the positions 1 to 4", 0.1,
            rank=2,
        ),
        Detector("self", "self", "weight on the query itself, on text", _OFFSETS, 0.1, rank=2),
        Detector(
            "final", "final prompt token",
            "weight of an answer's tokens on the last token of the prompt before them",
            "the three tokens before it", 0.1,
        ),
        Detector(
            "delimiter", "delimiter", "weight on delimiters, on text", "as many other keys nearby",
            2.0, "ratio", rank=1,
        ),
        Detector(
            "successor", "successor", "weight of a list's element on the one before it",
            "the same lists, shuffled", 0.05, "signal",
        ),
        Detector(
            "s_inhibition", "S-inhibition",
            "weight of the end on the second mention of the subject (ABBA and BABA)",
            "a third name at the same place", 0.1, "s_inhibition",
        ),
        Detector(
            "copying", "copying",
            "OV circuit: how far a token's own logit stands out of the others, in their deviations",
            "another token's logit", 1.0, rank=1,
        ),
    )
}  # fmt: skip
"""All detectors, in the order of tables."""
