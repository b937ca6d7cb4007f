"""What was said: the message of an error, and what stands on a terminal."""

import io

import pytest
from rich.console import Console

from mlxroles.errors import PromptError


def refusal(call, *args, **kwargs) -> str:
    """The message in which a prompt is refused; one line of plain characters."""
    with pytest.raises(PromptError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def line(error: pytest.ExceptionInfo) -> str:
    """The message of an error that was raised, which is one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def printed(renderable: object, width: int = 80) -> str:
    """The lines of something on a terminal without colour."""
    console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    console.print(renderable)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
