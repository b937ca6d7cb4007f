"""Any string becomes printable text, a file name, a suggestion."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxroles.text import (
    did_you_mean,
    distinct,
    format_bytes,
    format_number,
    format_seconds,
    safe_text,
    show_token,
    slug,
)

ANY_TEXT = st.text(st.characters(), max_size=60)  # surrogates included


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [b] $\\frac$ 星 é 🚀", "plain [b] $\\frac$ 星 é 🚀"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;owned\x07\x1b[2J", r"\x1b]0;owned\x07\x1b[2J"),
        ("\x9b1m\x00\x7f", r"\x9b1m\x00\x7f"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\ud800\udfff", r"\ud800\udfff"),
        ("\u2028\ufeff\u200b\xa0", r"\u2028\ufeff\u200b\xa0"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert safe_text(text) == shown


@given(ANY_TEXT)
def test_safe_text_is_printable_and_stays_so(text):
    shown = safe_text(text)
    assert shown.isprintable()
    assert safe_text(shown) == shown
    shown.encode("utf-8")


@given(ANY_TEXT, st.integers(0, 30))
def test_a_limit_holds_and_says_so(text, limit):
    shown = safe_text(text, limit=limit)
    assert len(shown) <= max(limit, 1)
    whole = safe_text(text)
    assert shown == whole if len(whole) <= limit else shown.endswith("…")


def test_the_spaces_of_a_token_are_visible():
    assert show_token(" the\n") == "␣the\\n"
    assert show_token(None) == "None"


@pytest.mark.parametrize("name", ["a", "llama-3.1_8b", "0" * 80, "_x"])
def test_a_good_name_is_kept(name):
    assert slug(name) == name


def test_changed_names_say_so_and_differ():
    names = ["A/b", "a/b", "a-b ", "../x", "/etc/x", "", ".", "..", ".hidden", "CON", "x" * 81]
    names += ["é", "e\u0301", "nul\0", "\ud800", "星", "Straße", "STRASSE"]
    made = [slug(name) for name in names]
    assert len(set(made)) == len(names)
    assert slug("A/b") == "a-b-3646f792"


@given(ANY_TEXT)
def test_every_slug_is_a_safe_file_name(name):
    made = slug(name)
    assert re.fullmatch(r"[a-z0-9_-][a-z0-9._-]{0,79}", made)
    assert slug(made) == made


def test_suggestions_ignore_case_and_stay_silent_when_nothing_is_near():
    assert did_you_mean("LLAMA8", ["llama8b", "qwen7b"]) == "; did you mean 'llama8b'?"
    assert did_you_mean("zebra", ["llama8b", "qwen7b"]) == ""
    assert did_you_mean("x", []) == ""


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (1500, "1.50 kB"),
        (9_996_000, "10.0 MB"),
        (36e9, "36.0 GB"),
        (537e6, "537 MB"),
        (4e12, "4.00 TB"),
        (5e18, "5000 PB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_bytes(count, shown):
    assert format_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.042, "0.04 s"),
        (0.996, "1.0 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (18_420, "5 h 07 min"),
        (86_399.9, "1 d 00 h"),
        (-1.0, "0.00 s"),
    ],
)
def test_seconds(seconds, shown):
    assert format_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [
        (0.98249, ".3f", "0.982"),
        (0.0, ".3f", "0.000"),
        (2.4e-5, ".3f", "2e-05"),
        (-7e-5, "+.3f", "-7e-05"),
        (0.001, "+.2f", "+0.00"),
        (float("nan"), ".3f", "–"),
    ],
)
def test_numbers(value, form, shown):
    assert format_number(value, form) == shown


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(0, 30))
def test_shortened_names_keep_to_their_limit(names, limit):
    found = distinct(names, limit)
    assert all(len(one) <= limit for one in found)
    for name, one in zip(names, found, strict=True):
        assert one == safe_text(name) or len(safe_text(name)) > limit


def test_names_that_differ_in_the_middle_or_at_the_end_stay_apart():
    ends = [f"layers no_request seed={seed}" for seed in (0, 1)]
    assert distinct(ends, 16) == ["layer…est seed=0", "layer…est seed=1"]
    middles = [f"sweep of {name} with everything else alike" for name in ("apples", "pears")]
    assert distinct(middles, 20) == ["sweep …apples… alike", "sweep …pears … alike"]
