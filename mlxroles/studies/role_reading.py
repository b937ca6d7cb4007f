"""Comparisons, candidates and correlations from what is stored: runs, patterns, published tables.

Nothing here runs a model. ``compat`` gives the original study's numbers to the digit, without it
each number comes with its interval, test and null.
"""

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

from mlxroles.errors import SpecError
from mlxroles.roles import candidates as ours
from mlxroles.roles import compare, compat, correlate, document, null, sources
from mlxroles.roles.contrast import Contrast, contrast_of
from mlxroles.roles.correlate import Profile
from mlxroles.roles.metrics import METRICS
from mlxroles.roles.sampling import Draws
from mlxroles.roles.scales import Averages
from mlxroles.roles.sources import Source
from mlxroles.roles.table import Entropies, Reading
from mlxroles.stats import binomial_fold_mean
from mlxroles.store.files import shown
from mlxroles.studies import role_results
from mlxroles.studies.role_results import Analysis

Document = dict[str, Any]
PAIRED_BY = ":"
"""Between the two files of a family whose base and instruct lie apart."""
MOST_FOLDERS = 3
"""Folders that stand before a name that is not the only one of its kind."""
DIGITS = 1e-6
"""How far a difference may lie from that of the rounded means beside it."""


class TwoModels:
    """Base and instruct of one family, wherever their numbers lie.

    Args:
        base: a run folder, a family, an ``.npz`` or ``.csv``.
        instruct: likewise; None for the same source.

    Raises:
        MlxrolesError: something cannot be read.
    """

    def __init__(self, base: str, instruct: str | None = None) -> None:
        self.base = sources.load(base)
        self.instruct = self.base if instruct is None else sources.load(instruct)
        self.is_table = not (self.base.tables or self.instruct.tables)
        if self.base is self.instruct and len(self.base.tables) == 1:
            raise SpecError(
                f"{shown(self.base.path)} holds one model; name base and instruct with --base and "
                f"--instruct, or as BASE{PAIRED_BY}INSTRUCT"
            )

    @property
    def name(self) -> str:
        """The family, for headings; of two sources what their names begin with."""
        shared = commonprefix([self.base.name, self.instruct.name]).rstrip(" _-.")  # noqa: RUF071  (text, not paths)
        return shared or self.base.name

    def paths(self) -> dict[str, str]:
        """Where base and instruct come from."""
        return {"base": str(self.base.path), "instruct": str(self.instruct.path)}

    def study_sides(self) -> tuple[Any, Any]:
        """What the study's formulas take: patterns where there are any, else entropies."""
        return (
            self.base.patterns or self.base.side("base"),
            self.instruct.patterns or self.instruct.side("instruct"),
        )

    def tables(self) -> dict[str, Entropies]:
        """The entropies of both models."""
        return {"base": self.base.side("base"), "instruct": self.instruct.side("instruct")}

    def exactness(self) -> list[str]:
        """What to say where the study's formulas meet entropies without its 1e-8."""
        if self.base.patterns and self.instruct.patterns:
            return []
        return [
            "a stored run has exact entropies: the study added 1e-8 to every weight, which changes "
            "its numbers by up to 1e-4, and composite scores by some 1e-3"
        ]

    def refuse_readings(self, analysis: Analysis) -> None:
        """Refuses a reading or contrast of a table, which has no queries and no prompts.

        Raises:
            SpecError: one was asked for.
        """
        if analysis.reading != Reading() or analysis.contrast is not None:
            raise SpecError(
                f"{shown(self.base.path)} is a table: --queries, --keys and --contrast need a run "
                "or patterns"
            )

    def names(self, analysis: Analysis) -> tuple[Contrast, tuple[str, ...]]:
        """The categories that are compared, and what to say about the choice.

        Raises:
            SpecError: there are fewer than two.
        """
        chosen, notes = contrast_of(self.base.side("base").categories, analysis.contrast)
        if chosen is None:
            raise SpecError("a comparison needs prompts of two categories; there is one")
        return chosen, notes

    def document(self, analysis: Analysis) -> Document:
        """All statistics of layers: the stored ones where both models are one run, else anew."""
        if self.base.kind == "run" and self.base.path == self.instruct.path:
            return role_results.read(self.base.path, analysis)
        self.names(analysis)
        found, _ = role_results.statistics(self.tables(), analysis, {}, heads=False)
        return found


def comparison(models: TwoModels, analysis: Analysis, *, is_compat: bool) -> Document:
    """Base against instruct per layer.

    From a stored run the study's formulas lack the 1e-8 that it added to every weight.

    Returns:
        ``rows``, one per layer, and their ``summary``. From a published comparison the rows are
        the study's columns, worked out again from its means, spreads and counts.

    Raises:
        SpecError: a table of candidates, or models that do not fit together.
    """
    about = {"schema": "mlxroles/compare/1", "family": models.name, "compat": is_compat}
    about |= models.paths()
    if models.is_table:
        models.refuse_readings(analysis)
        base, instruct = (_comparison_of(s) for s in (models.base, models.instruct))
        rows = compat.rows_from_comparison(base, instruct)
        notes = [] if is_compat else ["a table has no prompts: no tests and no null"]
        return about | _with_summary(rows, notes + _contradictions(base, instruct, rows))
    if is_compat:
        chosen, _ = models.names(analysis)
        base, instruct = models.study_sides()
        rows = compat.compare_rows(
            base,
            instruct,
            focus=chosen.focus,
            reference=chosen.reference,
            confounder=chosen.confounder,
        )
        first = models.tables()["base"]
        return (
            about
            | _with_summary(rows, models.exactness())
            | {"null": null.uniform(first, Reading(), chosen)["raw"]["forms"]["head_form"]}
        )
    doc = models.document(analysis)
    return about | {
        "rows": compare.rows(doc),
        "summary": doc["difference_summary"],
        "null": doc["null"],
        "contrast": doc["contrast"],
        "reading": doc["reading"],
        "notes": doc["notes"],
    }


def candidate_heads(
    models: TwoModels, analysis: Analysis, *, is_compat: bool, top_k: int
) -> Document:
    """Heads whose entropy instruction tuning moved for the focus alone.

    Returns:
        ``rows``, best first, with the chance level of their consistency; of a published table
        what it says about the heads that it does not show.

    Raises:
        SpecError: a table of comparisons, or models that do not fit together.
    """
    about = {"schema": "mlxroles/candidates/1", "family": models.name, "compat": is_compat}
    about |= models.paths()
    if models.is_table:
        models.refuse_readings(analysis)
        if models.base.candidates is None:
            raise SpecError(
                f"{shown(models.base.path)} is a comparison and ranks no heads; name "
                "a run, an .npz or a table of candidates"
            )
        rows = models.base.candidates
        found = compat.check_candidates(rows)
        return about | {"rows": rows[:top_k], **found, "notes": []}
    chosen, notes = models.names(analysis)
    if is_compat:
        base, instruct = models.study_sides()
        names = {"focus": chosen.focus, "reference": chosen.reference}
        rows, summary = compat.candidates(base, instruct, family=models.name, top_k=top_k, **names)
        chance = binomial_fold_mean(min(rows[0]["n_self"], rows[0]["n_neutral"]))
        return about | {
            "rows": rows,
            "summary": summary,
            "chance_consistency": chance,
            "notes": [*notes, *models.exactness()],
        }
    tables = document.ordered(models.tables())
    first = tables["base"]
    draws = Draws.of(
        first,
        seed=analysis.seed,
        n_resamples=analysis.n_resamples,
        n_permutations=analysis.n_permutations,
    )
    averages = Averages.by_scale(tables, analysis.reading)["raw"]
    found = ours.find(first.layers, averages, chosen, draws, top_k=top_k)
    return about | (found or {}) | {"contrast": chosen.document(), "notes": notes}


def correlation(
    named: Sequence[str], analysis: Analysis, *, is_compat: bool, metric: str = "rfc"
) -> tuple[Document, dict[str, Profile]]:
    """How the changes of several families go together over layers.

    Args:
        named: one source per family; ``BASE:INSTRUCT`` where the two lie apart.
        analysis: How runs are read.
        is_compat: Whether the study's JSON comes back.
        metric: ``rfc`` or ``rsi``.

    Returns:
        The document, and each family's change per layer.

    Raises:
        SpecError: fewer than two families.
    """
    if len(named) < 2:
        raise SpecError(f"a correlation needs two families or more, found {len(named)}")
    families = [family_of(text) for text in named]
    rows = {
        name: _changes(models, analysis, is_compat=is_compat)
        for name, models in zip(_distinct(families), families, strict=True)
    }
    about: Document = {"schema": "mlxroles/correlate/1", "compat": is_compat}
    about["sources"] = dict(zip(rows, named, strict=True))
    stored = [models for models in families if not models.is_table]
    exactness = stored[0].exactness() if is_compat and stored else []
    about["notes"] = [*exactness, *_mismatches(rows, is_compat=is_compat)]
    profiles = {name: correlate.from_rows(one, metric) for name, one in rows.items()}
    if is_compat:
        return about | compat.cross_model(rows, metric=metric), profiles
    return about | correlate.correlate(profiles, metric), profiles


def _changes(models: TwoModels, analysis: Analysis, *, is_compat: bool) -> list[dict[str, Any]]:
    """Rows with the change per layer; a table's own column, whatever its other columns say."""
    if models.is_table:
        models.refuse_readings(analysis)
        if models.base.comparison is None:
            raise SpecError(f"{shown(models.base.path)} ranks heads; expected is a comparison")
        return models.base.comparison
    return comparison(models, analysis, is_compat=is_compat)["rows"]


def _mismatches(rows: Mapping[str, list[dict[str, Any]]], *, is_compat: bool) -> list[str]:
    """What keeps families from being comparable."""
    notes = []
    by_head = [name for name, one in rows.items() if "rfc_mean_base" in one[0]]
    if by_head and len(by_head) < len(rows):
        notes.append(
            f"{', '.join(by_head)} in the study's form, a mean over heads of ratios, the others as "
            "ratio of means: the two differ, most of all where a head has almost no entropy"
        )
    layers = {tuple(row["layer"] for row in one) for one in rows.values()}
    if is_compat and len(layers) > 1:
        notes.append("the families have other layers; the study matches rows by their place")
    return notes


def _contradictions(
    base: list[dict[str, Any]], instruct: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[str]:
    """Layers whose stated difference is not that of the stated means."""
    if base is not instruct:
        return []
    wrong = [
        row["layer"]
        for stated, row in zip(base, rows, strict=True)
        if any(abs(stated[f"{m}_diff"] - row[f"{m}_diff"]) > DIGITS for m in METRICS)
    ]
    if not wrong:
        return []
    return [
        f"the table's own differences contradict its means in layers {', '.join(map(str, wrong))}; "
        "shown is instruct minus base"
    ]


def family_of(text: str) -> TwoModels:
    """The models that one source, or ``BASE:INSTRUCT``, stands for."""
    base, colon, instruct = text.rpartition(PAIRED_BY)
    if colon and not Path(text).exists():
        return TwoModels(base, instruct)
    return TwoModels(text)


def _distinct(families: Sequence[TwoModels]) -> list[str]:
    """A name for each; those that share one are told apart by their folders, else by a number."""
    names = [models.name for models in families]
    for depth in range(1, MOST_FOLDERS + 1):
        twice = {name for name in names if names.count(name) > 1}
        for n, models in enumerate(families):
            if names[n] in twice:
                folders = models.base.path.resolve().parts[-1 - depth : -1]
                names[n] = "/".join([*folders, models.name])
    numbers = [names[: n + 1].count(name) for n, name in enumerate(names)]
    return [f"{name} ({i})" if i > 1 else name for name, i in zip(names, numbers, strict=True)]


def _comparison_of(source: Source) -> list[dict[str, Any]]:
    if source.comparison is None or source.kind != "comparison":
        raise SpecError(
            f"{shown(source.path)} is no comparison of the study; name a run, an .npz, or a "
            "comparison's .csv (this program's own is read by correlate)"
        )
    return source.comparison


def _with_summary(rows: list[dict[str, Any]], notes: list[str]) -> Document:
    return {"rows": rows, "summary": compat.difference_summary(rows), "notes": notes}
