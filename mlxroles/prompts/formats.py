"""The formats of prompt files: text in, prompts out.

A key that is not understood is refused by name, so that a misspelt ``category`` cannot silently
drop the grouping of a study. Every reader takes the text, how to call the file in a message, and
the name that a single prompt gets.
"""

import csv
import io
import json
import tomllib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mlxroles.errors import PromptError
from mlxroles.prompts.prompt import SEPARATOR, Message, Prompt
from mlxroles.text import did_you_mean, safe_text

_ABOUT = ("name", "description", "source", "license", "strings", "headline")
_CONVERSATION = (*_ABOUT, "messages", "tools_text", "plain_text", "separator", "tools", "category")
_ENTRY = ("id", "text", "prompt", "messages", "ids", "category", "tools_text", "plain_text")
_COLUMNS = ("id", "text", "prompt", "messages", "category")
_SHAPES = (
    "a conversation {messages: [{role, content}, ...]}, a list of texts, a list of {text, id, "
    "category}, or {category: [texts]}; {ids: [...]} in place of a text for token ids"
)


def auto_id(index: int) -> str:
    """The id of a prompt that has none: ``p000``, ``p001`` ..."""
    return f"p{index:03d}"


def parse_json(content: str, named: str, name: str) -> list[Prompt]:
    """The prompts of a JSON document: a conversation or any of the shapes of a set."""
    try:
        document = json.loads(content, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{named} is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from error
    except RecursionError:
        raise PromptError(f"{named} is nested too deeply") from None
    except ValueError as error:
        raise PromptError(f"{named}: {safe_text(str(error), limit=200)}") from error
    if isinstance(document, list):
        if document and all(isinstance(item, dict) and "role" in item for item in document):
            return [_conversation({"messages": document}, named, name)]
        return _entries(document, named, {})
    if isinstance(document, dict):
        return _mapping(document, named, name)
    raise PromptError(f"{named} holds {_kind(document)}; expected {_SHAPES}")


def parse_toml(content: str, named: str, name: str) -> list[Prompt]:
    """The prompts of a TOML document: a conversation, or a set as ``[[prompts]]`` or categories."""
    try:
        document = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise PromptError(f"{named} is not TOML: {safe_text(str(error), limit=200)}") from error
    known = {"messages", "prompts", "categories"} & document.keys()
    if not known and not (document and all(isinstance(one, list) for one in document.values())):
        raise PromptError(
            f"{named} needs [[messages]] of a conversation, or [[prompts]] or category = [texts] "
            "of a set"
        )
    return _mapping(document, named, name)


def parse_csv(content: str, named: str, name: str) -> list[Prompt]:
    """One prompt per row of the column ``text`` or ``prompt``; ``id`` and ``category`` optional.

    Other columns are left alone, so token ids need another format. The name is unused: a table is
    always a set.
    """
    del name
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    prompts: list[Prompt] = []
    try:
        columns = [column.strip().lower() for column in rows.fieldnames or ()]
        rows.fieldnames = columns
        if len(set(columns)) < len(columns):
            raise PromptError(f"{named}: two columns of the header have the same name")
        if ("text" in columns) == ("prompt" in columns):
            raise PromptError(
                f"{named} needs a header with one column 'text' or 'prompt'; found "
                f"{safe_text(', '.join(columns), limit=120) or 'no header'}"
            )
        for row in rows:
            where = f"{named}, line {rows.line_num}"
            if None in row or None in row.values():
                raise PromptError(f"{where}: the row does not have {len(columns)} columns")
            entry = {key: value for key, value in row.items() if key in _COLUMNS and value}
            prompts.append(_entry(entry, where, len(prompts)))
    except csv.Error as error:
        raise PromptError(f"{named}, line {rows.line_num}: {error}") from error
    return prompts


def parse_text(content: str, named: str, name: str) -> list[Prompt]:
    """The whole content as one raw prompt, its last line break included."""
    return [_made(named, id=name, text=content)]


READERS: Mapping[str, Callable[[str, str, str], list[Prompt]]] = {
    ".json": parse_json,
    ".toml": parse_toml,
    ".csv": parse_csv,
    ".txt": parse_text,
}
"""Reader per ending of the file name."""


def _mapping(document: Mapping[str, Any], named: str, name: str) -> list[Prompt]:
    if "messages" in document:
        return [_conversation(document, named, name)]
    if "prompts" in document:
        _refuse_unknown(document, (*_ABOUT, "prompts"), named)
        return _entries(document["prompts"], named, _shared(document, named))
    if "categories" in document and isinstance(document["categories"], dict):
        _refuse_unknown(document, (*_ABOUT, "categories"), named)
        return _categories(document["categories"], named, _shared(document, named))
    if document and all(isinstance(value, list) for value in document.values()):
        return _categories(document, named, {})
    keys = safe_text(", ".join(document), limit=120) or "nothing"
    raise PromptError(f"{named} holds the keys {keys}; expected {_SHAPES}")


def _categories(
    categories: Mapping[str, Any], named: str, shared: Mapping[str, Any]
) -> list[Prompt]:
    prompts: list[Prompt] = []
    for category, items in categories.items():
        where = f"{named}: category '{safe_text(category, limit=80)}'"
        if not category.strip() or not items:
            raise PromptError(f"{where} has no {'prompts' if category.strip() else 'name'}")
        for item in _list(items, where):
            fields = _fields(item)
            if isinstance(fields, dict):
                fields = {"category": category, **fields}
            prompts.append(_entry(fields, where, len(prompts), shared))
    return prompts


def _entries(items: Any, named: str, shared: Mapping[str, Any]) -> list[Prompt]:
    return [
        _entry({"text": item} if isinstance(item, str) else item, named, index, shared)
        for index, item in enumerate(_list(items, named))
    ]


def _fields(item: Any) -> Any:
    """The fields of an item of a category: a bare text or a bare list of token ids has one."""
    if isinstance(item, str):
        return {"text": item}
    return {"ids": item} if isinstance(item, list) else item


def _entry(fields: Any, named: str, index: int, shared: Mapping[str, Any] | None = None) -> Prompt:
    where = f"{named}: prompt {index}"
    if not isinstance(fields, dict):
        raise PromptError(
            f"{where} is {_kind(fields)}; expected a text, {{text, id, category}} or {{ids, id, "
            "category}"
        )
    _refuse_unknown(fields, _ENTRY, where)
    if "text" in fields and "prompt" in fields:
        raise PromptError(f"{where} has both 'text' and 'prompt'; give one")
    text = _string(fields, "text", where) or _string(fields, "prompt", where)
    messages = _messages(fields["messages"], where) if "messages" in fields else None
    ids = _ids(fields["ids"], where) if "ids" in fields else None
    if not text and messages is None and ids is None:
        raise PromptError(f"{where} is empty: it has no text, no messages and no ids")
    number = fields.get("id")
    if isinstance(number, int) and not isinstance(number, bool):
        fields = {**fields, "id": str(number)}
    return _made(
        where,
        id=_string(fields, "id", where) or auto_id(index),
        text=text,
        messages=messages,
        ids=ids,
        category=_string(fields, "category", where),
        tools_text=_string(fields, "tools_text", where),
        plain_text=_string(fields, "plain_text", where),
        **(shared or {}),
    )


def _conversation(document: Mapping[str, Any], named: str, name: str) -> Prompt:
    _refuse_unknown(document, _CONVERSATION, named)
    tools = _list(document.get("tools", []), f"{named}: tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise PromptError(f"{named}: tools must be a list of tool schemas")
    separator = _string(document, "separator", named)
    return _made(
        named,
        id=_string(document, "name", named) or name,
        messages=_messages(document["messages"], named),
        category=_string(document, "category", named),
        tools_text=_string(document, "tools_text", named),
        plain_text=_string(document, "plain_text", named),
        separator=SEPARATOR if separator is None else separator,
        tools=tuple(tools),
        description=_string(document, "description", named) or "",
        **_shared(document, named),
    )


def _shared(document: Mapping[str, Any], named: str) -> dict[str, Any]:
    strings = _list(document.get("strings", []), f"{named}: strings")
    if not all(isinstance(string, str) and string for string in strings):
        raise PromptError(f"{named}: strings must be a list of texts, none of them empty")
    return {"strings": tuple(strings), "headline": _string(document, "headline", named)}


def _messages(items: Any, where: str) -> tuple[Message, ...]:
    messages = []
    for index, item in enumerate(_list(items, f"{where}: messages")):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise PromptError(f"{where}: message {index} must be {{role, content}}")
        _refuse_unknown(item, ("role", "content"), f"{where}: message {index}")
        role, content = item["role"], item["content"]
        if not isinstance(role, str) or not isinstance(content, str):
            raise PromptError(f"{where}: role and content of message {index} must be texts")
        messages.append(Message(role, content))
    return tuple(messages)


def _ids(items: Any, where: str) -> tuple[int, ...]:
    for position, item in enumerate(_list(items, f"{where}: ids")):
        if isinstance(item, bool) or not isinstance(item, int):
            kind = _kind(item)
            found = str(item) if kind == "a number" else kind
            raise PromptError(
                f"{where}: ids hold {found} at position {position}; expected whole numbers"
            )
    return tuple(items)


def _made(where: str, **fields: Any) -> Prompt:
    try:
        return Prompt(**fields)
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"{where} is {_kind(value)}; expected a list")
    return value


def _string(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, str):
        raise PromptError(f"{where}: {key} is {_kind(value)}; expected a text")
    return value


def _refuse_unknown(fields: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in fields:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known are {', '.join(known)}"
            raise PromptError(f"{where}: unknown key '{safe_text(key, limit=80)}'{hint}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands twice in one object")
    return document


def _kind(value: Any) -> str:
    names = {
        dict: "a table",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
