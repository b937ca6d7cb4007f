"""A query component's story as HTML: where it fires, what it looks for, what moves then.

Token text comes from a harvest and is only ever escaped text; curves are inline SVG whose colours
follow light and dark. No script.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from mlxroles.report.components.views import Partner, Story, Tokens, Value, Window
from mlxroles.text import format_number, safe_text, show_token

_WIDTH, _HEIGHT, _PAD = 150.0, 46.0, 3.0
_LINES = 4
"""Heads whose lines are drawn beside the sum."""
_CHIPS, _LETTERS = 6, 16
_MANY = 16
"""Heads from which on their bars are thin."""

STYLE = """\
:root { --plus: #b2182b; --minus: #2166ac; --chip: #eef2f6; --fires: #e8a33d }
@media (prefers-color-scheme: dark) { :root { --plus: #f4877a; --minus: #7db8e8;
  --chip: #262e35; --fires: #a06a12 } }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: 0 0 1rem; font-size: .92rem }
a { color: var(--accent) }
.story { border: 1px solid var(--rule); border-radius: 8px; margin: 0 0 .8rem; padding: 0 1rem }
.story summary { padding: .65rem 0; display: flex; flex-wrap: wrap; gap: .2rem .9rem;
  align-items: center }
.story summary::before { content: "▸"; color: var(--dim); width: .8rem }
.story[open] summary::before { content: "▾" }
.story[open] summary { margin: 0; border-bottom: 1px solid var(--rule) }
.story summary b { font-size: 1.12rem } .story summary span { font-weight: 400 }
.dim { color: var(--dim); font-size: .86rem }
.bars { display: inline-flex; align-items: flex-end; gap: 2px; height: 1.5rem }
.bars i { width: 7px; background: var(--accent); border-radius: 1px 1px 0 0; min-height: 1px }
.bars.many { gap: 1px } .bars.many i { width: 3px }
.told { margin: .7rem 0 } .told p { margin: .25rem 0 }
.chip { display: inline-block; background: var(--chip); border-radius: 4px; padding: 0 .35rem;
  margin: .1rem .15rem .1rem 0; font: .82rem/1.6 ui-monospace, "DejaVu Sans Mono", monospace;
  max-width: 100%; overflow-wrap: anywhere }
.window { font: .82rem/1.7 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--panel);
  border-radius: 4px; padding: .3rem .6rem; margin: .3rem 0; overflow-wrap: anywhere }
.window span { background: color-mix(in srgb, var(--fires) calc(var(--g) * 1%), transparent);
  border-radius: 3px } .window .at { outline: 1.5px solid var(--fires) }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; margin: .4rem 0 1rem }
.sides h4 { margin: .6rem 0 .2rem; font-size: .95rem }
.partner { display: grid; grid-template-columns: 9.4rem 1fr; gap: 0 .9rem; padding: .45rem 0;
  border-top: 1px solid var(--rule); align-items: start }
.partner p { margin: 0 } .plus { color: var(--plus) } .minus { color: var(--minus) }
.curve { width: 100%; height: auto; display: block; background: var(--panel); border-radius: 4px }
.curve line { stroke: var(--dim); stroke-width: .7; opacity: .6 }
.curve path { fill: none; stroke: var(--dim); stroke-width: 1; opacity: .55;
  stroke-linejoin: round }
.curve .head { stroke: var(--accent); stroke-width: 1.6; opacity: 1 }
.curve .sum { stroke: var(--ink); stroke-width: 1.8; opacity: 1 }
.key { display: inline-block; width: 1.3rem; height: .18rem; vertical-align: .25rem;
  margin: 0 .3rem 0 .8rem; background: var(--dim) } .key.sum { background: var(--ink) }
.key.head { background: var(--accent) }
@media (max-width: 44rem) { .sides { grid-template-columns: 1fr } .story { padding: 0 .7rem } }
@media (max-width: 26rem) { .partner { grid-template-columns: 7rem 1fr } }"""


def story(found: Story, ranked: str, *, is_open: bool) -> str:
    """One query component with its partners.

    Args:
        found: What is told.
        ranked: What importance is, in words.
        is_open: Whether it is shown unfolded.
    """
    head = [
        f"<b>q:{found.component}</b>",
        f"<span>{escape(ranked)} {format_number(found.importance)}</span>",
        _fires(found.density),
        _bars(found.share),
        _heads(found),
    ]
    sides = ""
    if found.attended or found.avoided:
        sides = (
            '<div class="sides">'
            + _side("Raises the score of", found.attended)
            + _side("Lowers the score of", found.avoided)
            + "</div>"
        )
    state = " open" if is_open else ""
    return (
        f'<details class="story"{state}>\n<summary>{"".join(head)}</summary>\n'
        f"{_told(found.tokens)}{sides}\n</details>"
    )


def legend() -> str:
    """What the small curves show."""
    return (
        '<p class="note">Curves: W by distance 0 to 16, query after key, '
        '<span class="key sum"></span>sum over heads <span class="key head"></span>the head with '
        'the most of it <span class="key"></span>other heads. Bars: share of the component\'s norm '
        "in each head. *: a larger peak than the largest of as many random key components of the "
        "same sizes (95 %).</p>"
    )


def chips(tokens: Sequence[tuple[str, float]], most: int = _CHIPS) -> str:
    """Tokens as small boxes; pointing at one shows its mutual information."""
    return "".join(
        f'<span class="chip" title="PMI {value:.2f} nats">'
        f"{escape(show_token(text, limit=_LETTERS))}</span>"
        for text, value in tokens[:most]
    )


def _fires(density: float) -> str:
    return "" if math.isnan(density) else f'<span class="dim">fires at {density:.2%}</span>'


def _bars(share: np.ndarray) -> str:
    if share.size < 2 or not np.isfinite(share).all():
        return ""
    top = float(share.max())
    bars = "".join(f'<i style="height:{100 * s / top:.0f}%"></i>' for s in share)
    kind = "bars many" if share.size > _MANY else "bars"
    return f'<span class="{kind}" aria-hidden="true">{bars}</span>'


def _heads(found: Story) -> str:
    if found.share.size < 2 or not np.isfinite(found.share).all():
        return ""
    best = int(found.share.argmax())
    most = math.log(found.share.size)
    told = f"{found.share[best]:.0%} in H{best}, spread {found.spread:.2f} of {most:.2f} nats"
    return f'<span class="dim">{told}</span>'


def _told(tokens: Tokens) -> str:
    """Where it fires, in tokens and in text."""
    lines = []
    if tokens.reads:
        lines.append(f'<p><span class="dim">fires at</span> {chips(tokens.reads)}</p>')
    if tokens.follows:
        lines.append(f'<p><span class="dim">before</span> {chips(tokens.follows)}</p>')
    lines += [_window(each) for each in tokens.windows]
    return f'<div class="told">{"".join(lines)}</div>' if lines else ""


def _window(found: Window) -> str:
    spans = []
    for n, (text, g) in enumerate(zip(found.tokens, found.importance, strict=True)):
        share = 0 if math.isnan(g) else round(100 * min(max(float(g), 0.0), 1.0))
        kind = ' class="at"' if n == found.at else ""
        shown = escape(safe_text(text, limit=40))
        spans.append(f'<span{kind} style="--g:{share}">{shown}</span>' if share or kind else shown)
    return f'<div class="window">{"".join(spans)}</div>'


def _side(name: str, found: Sequence[Partner]) -> str:
    rows = "".join(_partner(each) for each in found) or '<p class="dim">none</p>'
    return f"<div><h4>{name}</h4>{rows}</div>"


def _partner(found: Partner) -> str:
    kind = "plus" if found.peak > 0 else "minus"
    mark = "*" * (abs(found.peak) > found.chance)
    told = (
        f'<p><b>k:{found.component}</b> <span class="{kind}">{found.peak:+.2f}{mark}</span> '
        f'<span class="dim">at distance {found.offset}, most in H{found.head}</span></p>'
    )
    told += f"<p>{chips(found.tokens.reads, 4)}</p>" if found.tokens.reads else ""
    told += _values(found.values)
    return f'<div class="partner">{_curve(found)}<div>{told}</div></div>'


def _values(found: Sequence[Value]) -> str:
    """Value components, a line each where there are tokens to show."""
    named = [f"v:{each.component} ({each.measure:.2f})" for each in found]
    if not any(each.tokens.reads for each in found):
        return f'<p class="dim">→ {", ".join(named)}</p>' if found else ""
    return "".join(
        f'<p class="dim">→ {name} {chips(each.tokens.reads, 3)}</p>'
        for name, each in zip(named, found, strict=True)
    )


def _curve(found: Partner) -> str:
    """W by distance: thin lines per head, the strongest in colour, the sum in ink."""
    total = found.curves.sum(axis=1)
    strongest = np.argsort(-np.abs(found.curves).max(axis=0), kind="stable")[:_LINES]
    shown = {int(h) for h in strongest} | {found.head}
    drawn = found.curves[:, sorted(shown)]
    low, high = min(0.0, total.min(), drawn.min()), max(0.0, total.max(), drawn.max())
    span = (high - low) or 1.0

    def path(values: np.ndarray, kind: str = "other") -> str:
        step = (_WIDTH - 2 * _PAD) / max(len(values) - 1, 1)
        ys = _HEIGHT - _PAD - (values - low) / span * (_HEIGHT - 2 * _PAD)
        points = " ".join(f"{_PAD + n * step:.0f},{y:.1f}" for n, y in enumerate(ys))
        return f'<path class="{kind}" d="M{points}"/>'

    zero = _HEIGHT - _PAD - (0.0 - low) / span * (_HEIGHT - 2 * _PAD)
    others = "".join(path(found.curves[:, h]) for h in sorted(shown - {found.head}))
    named = f"W by distance, peak {found.peak:+.2f} at {found.offset}"
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{named}"><line x1="0" x2="{_WIDTH:.0f}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
        f"{others}{path(found.curves[:, found.head], 'head')}{path(total, 'sum')}</svg>"
    )
