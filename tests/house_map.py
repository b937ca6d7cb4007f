"""The map of the house in CONTRIBUTING.md, made from the first line of every module's docstring.

``python tests/house_map.py`` writes it; ``test_house.py`` checks that it is up to date.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mlxroles"
DOCUMENT = ROOT / "CONTRIBUTING.md"
_MARKED = re.compile(r"(<!-- map:begin -->\n).*?(<!-- map:end -->)", re.DOTALL)


def subject(module: Path) -> str:
    """The first line of the module's docstring, without the markup of docstrings."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    line = docstring.split("\n\n")[0].replace("\n", " ").strip()
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)
    return re.sub(r"``([^`]+)``", r"`\1`", line).rstrip(".")


def house_map() -> str:
    """One line per module, packages with theirs below them."""
    lines = []
    for path in sorted(PACKAGE.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("__"):
            lines.append(f"- `{path.stem}`: {subject(path)}")
        elif (path / "__init__.py").is_file():
            lines.append(f"- `{path.name}`: {subject(path / '__init__.py')}")
            lines += [
                f"  - `{module.stem}`: {subject(module)}"
                for module in sorted(path.glob("*.py"))
                if not module.name.startswith("__")
            ]
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """The document's text with the map of today between its markers."""
    assert _MARKED.search(text), "CONTRIBUTING.md lacks the markers of the map"
    return _MARKED.sub(lambda match: match[1] + house_map() + match[2], text)


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
