"""What a layer's query components look for, and which value components go with that."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlxroles.components import weights
from mlxroles.components.counts import coactivation
from mlxroles.components.decomposition import Decomposition
from mlxroles.components.offsets import peaks
from mlxroles.report.components.views import QK, MapView, Partner, Story, Tokens, Value, Window

if TYPE_CHECKING:
    from mlxroles.studies.component_report.layers import Sources

QUERIES, PARTNERS, VALUES = 10, 5, 3
"""Query components told of; key components on either side of zero; value components of each."""
PEAK_OFFSETS = (0, 1, 2, 4, 8)
"""Distances among which a partner's peak is looked for."""
_WINDOWS, _TOKENS = 3, 8


def stories(
    sources: "Sources",
    views: Mapping[str, MapView],
    maps: Mapping[str, Decomposition],
    qk: QK | None,
) -> tuple[Story, ...]:
    """The most important query components, each with partners where there are contributions."""
    query = views.get("q")
    if query is None:
        return ()
    share = None if query.head_norms is None else weights.shares(query.head_norms)
    found = []
    for component in (int(c) for c in query.top(QUERIES)):
        attended, avoided = _partners(sources, views, maps, qk, component)
        found.append(
            Story(
                component,
                float(query.importance[component]),
                float("nan") if query.density is None else float(query.density[component]),
                np.empty(0) if share is None else share[component],
                float("nan") if query.spread is None else float(query.spread[component]),
                tokens_of(sources, query.key, component, windows=_WINDOWS),
                attended,
                avoided,
            )
        )
    return tuple(found)


def tokens_of(sources: "Sources", key: str, component: int, *, windows: int = 0) -> Tokens:
    """At which tokens a component fires; nothing without a harvest of its map."""
    one, harvest = sources.harvested(key), sources.harvest
    if one is None or harvest is None:
        return Tokens()
    named = []
    for top in (one.input_tokens, one.output_tokens):
        rows = zip(top.id[component], top.pmi[component], top.low[component], strict=True)
        clear = [(harvest.token(int(i)), float(p)) for i, p, low in rows if i >= 0 and low > 0]
        named.append(tuple(clear[:_TOKENS]))
    shown = harvest.windows(one, component)[:windows] if windows else []
    return Tokens(*named, tuple(Window(w.text, w.importance.astype(float), w.at) for w in shown))


def _partners(
    sources: "Sources",
    views: Mapping[str, MapView],
    maps: Mapping[str, Decomposition],
    qk: QK | None,
    component: int,
) -> tuple[tuple[Partner, ...], tuple[Partner, ...]]:
    """Key components with the largest and with the most negative peak of the head sum."""
    if qk is None or component not in qk.q:
        return (), ()
    row = int(np.flatnonzero(qk.q == component)[0])
    curves = qk.values[:, :, row].astype(np.float64)
    where = np.flatnonzero(np.isin(qk.offsets, PEAK_OFFSETS))
    at, peak = peaks(curves[where].sum(axis=1))
    order = np.argsort(-peak, kind="stable")

    def partner(column: int) -> Partner:
        offset, key = int(where[at[column]]), int(qk.k[column])
        return Partner(
            key,
            float(peak[column]),
            float(qk.chance.of_query[row]),
            int(qk.offsets[offset]),
            int(np.abs(curves[offset, :, column]).argmax()),
            curves[:, :, column],
            tokens_of(sources, views["k"].key, key),
            _values(sources, views, maps, key),
        )

    attended = [partner(int(c)) for c in order[:PARTNERS] if peak[c] > 0]
    avoided = [partner(int(c)) for c in order[::-1][:PARTNERS] if peak[c] < 0]
    return tuple(attended), tuple(avoided)


def _values(
    sources: "Sources", views: Mapping[str, MapView], maps: Mapping[str, Decomposition], key: int
) -> tuple[Value, ...]:
    """Value components that fire with a key component, or read alike where there is no harvest.

    Only those beyond the largest of as many correlations that there would be by chance (95 %).
    """
    if "v" not in views:
        return ()
    chosen = views["v"].order[views["v"].alive[views["v"].order]]
    measure, size = _measure(sources, views, maps, key, chosen)
    best = np.argsort(-measure, kind="stable")[:VALUES]
    best = best[measure[best] > weights.chance_cosine(size, max(len(chosen), 1))]
    name = views["v"].key
    return tuple(
        Value(
            int(chosen[at]),
            float(measure[at]),
            tokens_of(sources, name, int(chosen[at])),
        )
        for at in best
    )


def _measure(
    sources: "Sources",
    views: Mapping[str, MapView],
    maps: Mapping[str, Decomposition],
    key: int,
    chosen: Sequence[int] | NDArray[Any],
) -> tuple[NDArray[np.float64], int]:
    """Phi of a key component with value components, or the size of their cosine [chosen].

    With the number of tokens, or of features, that it is a correlation over.
    """
    first, second = views["k"].key, views["v"].key
    both, one, other = (
        sources.pairs(first, second),
        sources.harvested(first),
        sources.harvested(second),
    )
    if sources.harvest is None or both is None or one is None or other is None:
        cosine = weights.similarity(maps["k"], maps["v"])[key, list(chosen)]
        return np.abs(cosine), maps["k"].d_in
    n, pairs = sources.harvest.n_tokens, both[np.ix_([key], list(chosen))]
    return coactivation(one.firing[[key]], other.firing[list(chosen)], pairs, n).phi[0], n
