"""Diagnostics on paper: text with a caret, colour, JSON, GitHub and SARIF; nothing steers the terminal."""

from __future__ import annotations

import io
import json

import pytest

from quantcfg.errors import Diagnostic, Place
from quantcfg.render.diagnostics import (
    as_github,
    as_json,
    as_sarif,
    format_diagnostic,
    format_diagnostics,
    print_diagnostics,
    summary_of,
)
from quantcfg.render.text import display_width, safe_text

FULL = Diagnostic(
    "QC101",
    "unknown key `batchs` in `calib`",
    Place("vit.yaml", 12, 3, 6),
    "  batchs: 8",
    label="did you mean `batches`?",
    notes=("keys here: batches, samples",),
    help="write `batches`",
    related=((Place("base.yaml", 3, 1), "first here"),),
)
WARNING = Diagnostic("QC203", "this config quantizes nothing", Place("vit.yaml", 1), severity="warning")


def test_a_full_diagnostic():
    assert format_diagnostic(FULL) == (
        "error[QC101]: unknown key `batchs` in `calib`\n"
        "  --> vit.yaml:12:3\n"
        "   |\n"
        "12 |   batchs: 8\n"
        "   |   ^^^^^^ did you mean `batches`?\n"
        "   |\n"
        "   = note: first here: base.yaml:3:1\n"
        "   = note: keys here: batches, samples\n"
        "   = help: write `batches`"
    )


def test_without_a_source_line_there_is_no_snippet():
    assert format_diagnostic(WARNING) == "warning[QC203]: this config quantizes nothing\n --> vit.yaml:1:1"


def test_without_a_place_there_is_the_headline():
    assert format_diagnostic(Diagnostic("QC201", "nothing matches", label="x")) == (
        "error[QC201]: nothing matches\n  = x"
    )


def test_several_end_with_their_count_by_file():
    text = format_diagnostics([FULL, FULL, WARNING])
    assert text.endswith("\n\nvit.yaml: 2 errors, 1 warning")
    assert summary_of([Diagnostic("QC201", "x")]) == "config: 1 error"
    assert format_diagnostics([]) == ""


def test_colour_adds_codes_and_changes_nothing_else():
    import re

    coloured = format_diagnostics([FULL, WARNING], colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == format_diagnostics([FULL, WARNING])
    assert coloured.startswith("\x1b[1;31merror[QC101]\x1b[0m")


@pytest.mark.parametrize(
    ("source", "column", "length", "line", "caret"),
    [
        ("\tkey: 1", 2, 3, "1 |     key: 1", "  |     ^^^"),
        ("名前: {x: 1}", 6, 1, "1 | 名前: {x: 1}", "  |        ^"),
        ("a: 1", 3, 9, "1 | a: 1", "  |   ^^"),
        ("a:", 3, 1, "1 | a:", "  |   ^"),
        ("x\x1b[31mkey: 1", 6, 3, "1 | x\\x1b[31mkey: 1", "  |         ^^^"),
    ],
)
def test_the_caret_stands_beneath_what_is_meant(source, column, length, line, caret):
    lines = format_diagnostic(Diagnostic("QC101", "x", Place("f", 1, column, length), source)).split("\n")
    assert lines[3] == line
    assert lines[4] == caret


def test_a_long_line_is_cut_around_the_caret():
    source = "a" * 500 + " bad " + "b" * 500
    lines = format_diagnostic(Diagnostic("QC101", "x", Place("f", 1, 502, 3), source)).split("\n")
    caret = lines[4].index("^")
    assert lines[3][caret : caret + 3] == "bad"
    assert max(map(len, lines)) < 140
    assert "..." in lines[3]


HOSTILE = [
    "\x1b[2J",
    "\x07",
    "\x9b31m",
    "\u202e",
    "\u200b",
    "\ud800",
    "a\nb",
    "\r",
    "[red]",
    ":smile:",
    "\U000e0041",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_made_visible_everywhere(text):
    place = Place(f"f{text}", 1, 1, 3)
    hostile = Diagnostic(
        "QC101", text, place, f"key{text}", label=text, notes=(text,), help=text, related=((place, text),)
    )
    for shown in (format_diagnostics([hostile]), as_github([hostile])):
        assert not any(ord(char) < 32 and char != "\n" for char in shown)
        assert not set(shown) & set("\x9b\u202e\u200b\ud800\r\U000e0041")
        assert "\x1b" not in shown
    assert format_diagnostics([hostile]).count("\n") == format_diagnostics([FULL]).count("\n")


def test_safe_text_shows_what_was_there():
    assert safe_text("a\x1b[0mb\u202e\U000e0041") == "a\\x1b[0mb\\u202e\\U000e0041"
    assert safe_text("größe 名前 😀") == "größe 名前 😀"


def test_width_counts_columns():
    assert [display_width(text) for text in ("abc", "名前", "e\u0301")] == [3, 4, 1]


def test_json_holds_all():
    assert as_json([FULL, WARNING]) == {
        "format_version": "1.0",
        "valid": False,
        "error_count": 1,
        "warning_count": 1,
        "diagnostics": [
            {
                "code": "QC101",
                "severity": "error",
                "summary": "unknown key `batchs` in `calib`",
                "label": "did you mean `batches`?",
                "range": {
                    "file": "vit.yaml",
                    "start": {"line": 12, "column": 3},
                    "end": {"line": 12, "column": 9},
                },
                "notes": ["keys here: batches, samples"],
                "help": "write `batches`",
                "related": [
                    {
                        "range": {
                            "file": "base.yaml",
                            "start": {"line": 3, "column": 1},
                            "end": {"line": 3, "column": 2},
                        },
                        "text": "first here",
                    }
                ],
            },
            {
                "code": "QC203",
                "severity": "warning",
                "summary": "this config quantizes nothing",
                "label": "",
                "range": {
                    "file": "vit.yaml",
                    "start": {"line": 1, "column": 1},
                    "end": {"line": 1, "column": 2},
                },
                "notes": [],
                "help": "",
                "related": [],
            },
        ],
    }


def test_github_annotations_escape_what_they_must():
    odd = Diagnostic("QC101", "50% of a,b:c", Place("a,b:c.yaml", 1, 2, 3))
    assert as_github([FULL, WARNING, odd]).split("\n") == [
        "::error file=vit.yaml,line=12,col=3,endColumn=9,title=QC101::"
        "unknown key `batchs` in `calib`. did you mean `batches`?. write `batches`",
        "::warning file=vit.yaml,line=1,col=1,endColumn=2,title=QC203::this config quantizes nothing",
        "::error file=a%2Cb%3Ac.yaml,line=1,col=2,endColumn=5,title=QC101::50%25 of a,b:c",
    ]


def test_sarif_has_a_result_per_diagnostic():
    run = as_sarif([FULL, WARNING])["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["QC101", "QC203"]
    assert [result["level"] for result in run["results"]] == ["error", "warning"]
    region = run["results"][0]["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 12, "startColumn": 3, "endColumn": 9}
    json.dumps(run)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_and_no_color_is_honoured(no_color, coloured, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal, pipe = Terminal(), io.StringIO()
    print_diagnostics([FULL], terminal)
    print_diagnostics([FULL], pipe)
    assert ("\x1b" in terminal.getvalue()) == coloured
    assert pipe.getvalue() == format_diagnostics([FULL]) + "\n"


def test_a_stream_that_cannot_encode_a_character_gets_an_escape():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    print_diagnostics([Diagnostic("QC101", "größe")], stream)
    assert b"gr\\xf6\\xdfe" in raw.getvalue()
