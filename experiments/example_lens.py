"""Where does a model decide to call a tool, and who writes that decision?

The logit lens reads each layer's stream with the model's own final norm and head; direct
attribution splits the logit difference at the end into what every head and MLP wrote. Both are
read with the notepad offered and without, on one conversation: a description of one prompt, not
a finding about the model.

    python experiments/example_lens.py [MODEL] [FIGURE.png]
"""

import sys
from pathlib import Path

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mlxroles
from mlxroles import direct, lens
from mlxroles.dashboard.direct_tables import direct_tables
from mlxroles.prompts import encode, load_prompts


def main(name: str = "tiny/instruct", figure: str | None = None) -> dict[str, object]:
    """Prints the answer and returns its numbers."""
    model, console = mlxroles.load(name), Console()
    prompt = load_prompts("notepad")[0]
    rows = {
        title: encode(prompt, model.tokenizer, tools=offered, vocab_size=model.vocab).tolist()
        for title, offered in (("offered", True), ("not offered", False))
    }
    tag = model.tokenizer.convert_tokens_to_ids("<tool_call>")
    said = model.run(rows["not offered"], positions="last").logits
    assert said is not None
    instead = int(np.array(said)[0, 0].argmax())
    print(
        f"tool call against {model.tokenizer.decode([instead])!r}, what it says without the offer"
    )

    readings = {t: lens.read(model, r, positions=[-1], asked=[tag]) for t, r in rows.items()}
    print("P(tool call) if the stream ended at each layer:")
    for title, reading in readings.items():
        shares = np.exp(reading.asked_log_prob[:, 0, 0])
        print(f"  {title:<12} " + "  ".join(f"L{i} {p:.3f}" for i, p in enumerate(shares)))

    parts = {t: direct.attribute(model, r, -1, tag, instead) for t, r in rows.items()}
    docs = {t: p.document(lambda i: model.tokenizer.decode([i])) for t, p in parts.items()}
    console.print(direct_tables(docs))
    change = parts["offered"].values - parts["not offered"].values
    order = np.argsort(-np.abs(change))[:5]
    print("The offer changes most what these write: " + ", ".join(
        f"{parts['offered'].names[i]} {change[i]:+.2f}" for i in order
    ) + f"; all together {change.sum():+.2f}.")  # fmt: skip
    if figure:
        from mlxroles.plots import canvas
        from mlxroles.plots import direct as plots

        with canvas.style():
            path = Path(figure)
            canvas.save(plots.parts({"display": name}, docs), path, path.with_suffix(".svg"))
    return {"readings": readings, "parts": parts, "tag": tag, "instead": instead}


if __name__ == "__main__":
    main(*sys.argv[1:3])
