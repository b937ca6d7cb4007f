"""The files of a report on components: pages, figures, tables, the document last."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxroles.plots.components import layer_figures, overview_figures
from mlxroles.report import components as report
from mlxroles.store.files import make_folder, plain_errors, write_atomic, write_json
from mlxroles.store.summary import SUMMARY
from mlxroles.studies.component_report import document

if TYPE_CHECKING:
    from mlxroles.report.components.views import LayerView, MapView

FIGURES, PAGE = "figures", "report.html"
TABLE, PAIRS = "components.csv", "pairs.csv"


class Pages:
    """Writes the report of one folder; of the layers only figures' paths and numbers are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pairs: list[tuple[Any, ...]] = []
        self._drawn: list[tuple[LayerView, dict[str, str]]] = []

    def draw(self, doc: Mapping[str, Any], view: "LayerView") -> None:
        """Draws the figures of a layer.

        Raises:
            StoreError: something cannot be written.
        """
        folder = self.folder / FIGURES / Path(report.file_name(view.layer)).stem
        with plain_errors(folder):
            self._drawn.append((view, layer_figures(doc, view, folder)))
        self._pairs += document.pair_rows(view)

    def write(self, doc: dict[str, Any], maps: Sequence["MapView"]) -> None:
        """Writes the pages, which know of all layers, the tables and the document.

        Raises:
            StoreError: something cannot be written.
        """
        doc["sentence"] = report.sentence(doc)
        doc["missing"] = report.missing(doc)
        with plain_errors(self.folder / FIGURES):
            doc["figures"] = overview_figures(doc, maps, self.folder / FIGURES)
            make_folder(self.folder / report.LAYERS)
        write_atomic(self.folder / PAGE, report.index(doc, doc["figures"]).encode())
        doc["pages"] = []
        for view, figures in self._drawn:
            path = self.folder / report.LAYERS / report.file_name(view.layer)
            write_atomic(path, report.layer_page(doc, view, figures).encode())
            doc["pages"].append(str(path))
        write_atomic(self.folder / TABLE, document.table(maps).encode())
        if self._pairs:
            out = io.StringIO()
            writer = csv.writer(out, lineterminator="\n")
            writer.writerows([document.PAIR_COLUMNS, *self._pairs])
            write_atomic(self.folder / PAIRS, out.getvalue().encode())
        write_json(self.folder / SUMMARY, doc)
