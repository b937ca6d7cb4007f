"""The page of a comparison: prompt by prompt, one row per condition.

Token text comes from models and prompts: it is made visible and escaped, and stands in elements
only, never in the script. The script filters rows that are all there; without it all are shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mlxroles.report import shell
from mlxroles.report.ablate import position_rows
from mlxroles.report.ablate.position_page import STYLE as LEFT
from mlxroles.report.ablate.position_page import TITLES, drawn
from mlxroles.text import format_number, safe_text, show_token

Doc = Mapping[str, Any]

_TOKEN = 24
"""Longest token text that is shown, in characters."""
_PROMPT = 400
"""Tokens of a prompt that are shown, the last ones."""

STYLE = """\
:root { --up: 31 108 176; --down: 189 70 1; --mark: #ffd98a; --mark-2: #d9e6f2 }
@media (prefers-color-scheme: dark) { :root { --up: 86 160 224; --down: 240 120 60;
  --mark: #7a5a12; --mark-2: #2d4861 } }
body { max-width: 88rem }
.filters { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center;
  background: var(--paper); border: 1px solid var(--rule); border-radius: 4px;
  padding: .6rem .9rem; margin: 1.5rem 0; position: sticky; top: 0; z-index: 2 }
.filters label { font-size: .9rem; display: flex; gap: .4rem; align-items: center }
.filters input[type=search], .filters select { font: inherit; color: inherit;
  background: var(--paper); border: 1px solid var(--rule); border-radius: 3px; padding: .1rem .3rem;
  max-width: 100% }
.filters output { color: var(--dim); font-size: .9rem }
.prompt { margin: 2rem 0; border-top: 2px solid var(--rule); padding-top: .75rem }
.prompt h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere }
.prompt h3 span { color: var(--dim); font-weight: 400 }
.chips { margin: 0 0 .5rem; line-height: 1.9 }
.chip, .tok { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; font-size: .82rem;
  overflow-wrap: anywhere }
.chip { border: 1px solid var(--rule); border-radius: 3px; padding: .05rem .25rem;
  margin-right: .15rem }
.chip.t { background: var(--mark); border-color: currentcolor; font-weight: 600 }
.chip.before { background: var(--mark-2); border-style: dashed; border-color: currentcolor }
.chip sub { font-size: .7em }
.prompt table { width: 100% } .prompt td, .prompt th { text-align: left; white-space: normal;
  vertical-align: top; padding: .3rem .5rem }
.prompt td.n { text-align: right; white-space: nowrap }
.prompt td:first-child { min-width: 9rem } .prompt small { color: var(--dim) }
.prompt td.moves { min-width: 16rem }
.up, .down { display: inline-block; border-radius: 3px; padding: 0 .25rem; margin: 0 .2rem .15rem 0;
  white-space: nowrap }
.up { background: rgb(var(--up) / var(--a)) } .down { background: rgb(var(--down) / var(--a)) }
tr.other td.said { font-weight: 600 } .said i { font-style: normal }
[hidden] { display: none !important }
@media (max-width: 40rem) { body { padding: 1rem .75rem 3rem } .filters { position: static }
  .prompt thead { display: none } .prompt tbody tr { display: flex; flex-wrap: wrap;
  border-bottom: 1px solid var(--rule) } .prompt td { border: 0 }
  .prompt td:first-child { flex: 1 0 100%; font-weight: 600; padding-bottom: 0 }
  .prompt td.n::before { content: attr(data-what) " "; color: var(--dim) }
  .prompt td.moves { flex: 1 0 100%; min-width: 0 } .prompt td:empty { display: none } }
@media print { .filters { display: none } .prompt { break-inside: avoid } }"""

SCRIPT = """
"use strict";
const form = document.querySelector(".filters");
form.hidden = false;
const [text, model, condition, changed, shown] =
  ["text", "model", "condition", "changed", "shown"].map(name => form.elements[name]);
const sections = [...document.querySelectorAll("section.prompt")].map(section => ({
  section, text: section.textContent.toLowerCase(), rows: [...section.querySelectorAll("tbody tr")],
}));
const update = () => {
  const wanted = text.value.trim().toLowerCase();
  let count = 0;
  for (const {section, text: all, rows} of sections) {
    let any = false;
    const fits = all.includes(wanted) && (!model || !model.value
      || section.dataset.model === model.value);
    for (const row of rows) {
      const keep = fits && (!condition.value || row.dataset.condition === condition.value)
        && (!changed.checked || row.dataset.other === "1");
      row.hidden = !keep;
      any = any || keep;
    }
    section.hidden = !any;
    count += any;
  }
  shown.value = count + " of " + sections.length + " shown";
};
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
update();
"""


def html(doc: Doc, figures: Mapping[str, str]) -> str:
    """The whole page of a comparison; ``figures`` are paths of PNG files by name.

    Raises:
        StoreError: a figure cannot be read.
    """
    title = f"{TITLES['compare']} without {position_rows.heads(doc)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="finding">{escape(doc["sentence"])}</p>',
        *drawn(figures),
        *(shell.table(grid) for grid in position_rows.grids(doc)),
        shell.note(position_rows.legend(doc)),
        "<h2>Prompt by prompt</h2>",
        shell.note(
            "t is where the next token is predicted; dashed: t-1. Every condition is held "
            "against its own baseline: P is that of the predicted token, logit the change of the "
            "baseline's token; then the logits that rose and fell most. The deeper the colour the "
            "larger the change, against the largest of the prompt."
        ),
        _filters(doc),
        *_sections(doc),
        "<h2>The run</h2>",
        shell.facts(position_rows.facts(doc)),
    ]
    return shell.page(title, parts, style=f"{LEFT}\n{STYLE}", script=SCRIPT)


def _filters(doc: Doc) -> str:
    """The form that the script reads; hidden without it."""
    models = [(name, name) for name in doc["models"]]
    compared = [(str(n), name) for n, name in enumerate(doc["baselines"])]
    several = _choice("model", "Model", models) if len(models) > 1 else ""
    return (
        '<form class="filters" hidden>'
        '<label>Find <input type="search" name="text" size="18"></label>'
        f"{several}{_choice('condition', 'Condition', compared)}"
        '<label><input type="checkbox" name="changed"> only where the token is another</label>'
        '<output name="shown"></output></form>'
    )


def _choice(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    listed = "".join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in options)
    return (
        f'<label>{label} <select name="{name}"><option value="">all</option>{listed}</select>'
        "</label>"
    )


def _sections(doc: Doc) -> Iterator[str]:
    """One section per prompt, position and model."""
    groups: dict[tuple[int, int, str], list[Mapping[str, Any]]] = {}
    order = {name: n for n, name in enumerate(doc["models"])}
    for row in doc["rows"]:
        groups.setdefault((row["prompt"], row["position"], row["model"]), []).append(row)
    for prompt, position, model in sorted(groups, key=lambda k: (k[0], k[1], order[k[2]])):
        yield _section(doc, prompt, position, model, groups[prompt, position, model])


def _section(
    doc: Doc, prompt: int, position: int, model: str, rows: Sequence[Mapping[str, Any]]
) -> str:
    name = escape(safe_text(str(doc["prompts"][prompt]["id"]), limit=60))
    about = [model] if len(doc["models"]) > 1 else []
    about.append(f"t = {position}")
    most = max((abs(x) for row in rows for side in ("up", "down") for _, x in row[side]), default=0)
    body = "\n".join(_row(doc, row, most) for row in rows)
    head = "".join(
        f'<th scope="col">{text}</th>'
        for text in ("condition", "predicted", "P", "logit", "KL", "rose most", "fell most")
    )
    return (
        f'<section class="prompt" data-model="{escape(model)}">\n'
        f"<h3>{name} <span>{escape(', '.join(about))}</span></h3>\n"
        f'<p class="chips">{_chips(doc, prompt, position)}</p>\n'
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _chips(doc: Doc, prompt: int, position: int) -> str:
    """The prompt up to t, its last two positions marked."""
    ids = doc["token_ids"][prompt][: position + 1]
    first = max(0, len(ids) - _PROMPT)
    chips = [f"<small>{first} tokens before </small>"] if first else []
    marks = {position: (" t", "t"), position - 1: (" before", "t-1")}
    for at in range(first, len(ids)):
        kind, word = marks.get(at, ("", ""))
        told = f"<sub>{word}</sub>" if word else ""
        chips.append(f'<span class="chip{kind}">{_token(doc, ids[at])}{told}</span>')
    return "<wbr>".join(chips)


def _row(doc: Doc, row: Mapping[str, Any], most: float) -> str:
    base = row["baseline"]
    is_other = base is not None and row["predicted"] != row["before"]
    about = f"<br><small>to: {escape(base)}</small>" if base not in (None, _first(doc)) else ""
    said = f'<span class="tok">{_token(doc, row["predicted"])}</span>'
    if is_other:
        said = f'<i aria-label="another token">≠</i> {said}'
    change = "" if base is None else format_number(position_rows.number(row["change"]), "+.2f")
    kl = "" if base is None else format_number(position_rows.number(row["kl"]))
    moves = "".join(
        f'<td class="moves">{_moves(doc, row[side], side, most)}</td>' for side in ("up", "down")
    )
    place = list(doc["baselines"]).index(row["condition"])
    kind = ' class="other"' if is_other else ""
    numbers = (("P", format_number(position_rows.number(row["p"]))), ("logit", change), ("KL", kl))
    cells = "".join(f'<td class="n" data-what="{what}">{text}</td>' for what, text in numbers)
    return (
        f'<tr{kind} data-condition="{place}" data-other="{int(is_other)}">'
        f'<td>{escape(row["condition"])}{about}</td><td class="said">{said}</td>{cells}{moves}</tr>'
    )


def _first(doc: Doc) -> str:
    """The condition that has no baseline."""
    return next(name for name, base in doc["baselines"].items() if base is None)


def _moves(doc: Doc, pairs: Sequence[Sequence[float]], side: str, most: float) -> str:
    """Logits that moved to this side, as far as they did."""
    found = []
    for token, change in pairs:
        if (change > 0) == (side == "up") and change:
            share = 0.08 + 0.52 * abs(change) / most
            found.append(
                f'<span class="{side}" style="--a:{share:.2f}"><span class="tok">'
                f"{_token(doc, int(token))}</span> {change:+.1f}</span>"
            )
    return " ".join(found)


def _token(doc: Doc, token: int) -> str:
    return escape(show_token(doc["texts"].get(str(token), token), limit=_TOKEN))
