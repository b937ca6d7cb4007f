"""Heads of the induction circuit, found by their scores on random ids that repeat once.

The ids are not those on which effects are measured.
"""

from mlxroles.detectors import MARKED, HeadScores, head_scores
from mlxroles.errors import ModelError
from mlxroles.heads import head_name
from mlxroles.models.model import Model
from mlxroles.studies.ablate.ablation import SLOTS, Head
from mlxroles.studies.ablate.prompts import SCORED, repeats
from mlxroles.studies.subject import Subject


def scores_of(subject: Subject, model: Model, *, seed: int) -> HeadScores:
    """Scores of all heads of a model."""
    return head_scores(model, [p.ids for p in repeats(subject, seed=seed, stream=SCORED)])


def refuse_none(subject: Subject, side: str, scores: HeadScores) -> None:
    """Stops where a model has no head of a kind.

    Raises:
        ModelError: with the best one and its score.
    """
    place = subject.sides[side].folder.name
    who = place if len(subject.sides) == 1 else f"{side} ({place})"
    for kind in ("induction", "previous"):
        if scores.marked(kind):
            continue
        ranked, best = scores.ranked(kind), ""
        if ranked:
            best = (
                f": the best, {head_name(*ranked[0])}, scores {scores.means(kind)[ranked[0]]:.2f}"
            )
        raise ModelError(
            f"{who} has no {SLOTS[kind]} head on repeated random tokens{best} (one scores above "
            f"{MARKED}); name heads with --heads"
        )


def best_pairs(subject: Subject, side: str, pairs: int, *, seed: int) -> list[Head]:
    """The first previous-token heads and induction heads, as many of each as there are at most.

    Raises:
        ModelError: there are none.
    """
    scores = scores_of(subject, subject.model(side), seed=seed)
    refuse_none(subject, side, scores)
    listed = [at for kind in SLOTS for at in scores.marked(kind)[:pairs]]
    return list(dict.fromkeys(listed))
