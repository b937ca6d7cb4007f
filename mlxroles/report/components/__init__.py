"""Reports on components: a page of all layers, a page per layer, the sentences and tables."""

from mlxroles.report.components.page import LAYERS, file_name, index, layer_page
from mlxroles.report.components.wording import layer_sentence, missing, sentence, title

__all__ = [
    "LAYERS",
    "file_name",
    "index",
    "layer_page",
    "layer_sentence",
    "missing",
    "sentence",
    "title",
]
