"""What a pattern is, and where it says that it is none."""

from __future__ import annotations

import pytest

from quantcfg.config.patterns import PatternError, is_exact, parse_pattern, parse_regex


@pytest.mark.parametrize("name", ["a", "layer1.0.conv", "add_0", "backbone.layer-1"])
def test_a_plain_name_is_exact(name):
    assert is_exact(name)


@pytest.mark.parametrize("pattern", ["a.*", "**", "a?", "{a,b}", "re:a", "a[0]"])
def test_anything_else_is_not(pattern):
    assert not is_exact(pattern)


@pytest.mark.parametrize(
    ("pattern", "offset", "message"),
    [
        ("a..b", 2, "an empty segment: two dots in a row, or a dot at an end"),
        (".a", 0, "an empty segment: two dots in a row, or a dot at an end"),
        ("a.", 2, "an empty segment: two dots in a row, or a dot at an end"),
        ("a.b**", 3, "`**` must be a whole segment"),
        ("a.{1,2", 2, "`{` is never closed"),
        ("a.1}", 3, "`}` without `{`"),
        ("{a,{b,c}}", 3, "braces inside braces"),
        ("x.{a}", 2, "`{a}` needs two or more alternatives"),
        ("x.{a,}", 2, "`{a,}` needs two or more alternatives"),
        ("x.{a.b,c}", 2, "alternatives hold one segment each, without dots"),
        ("x.{3..1}", 2, "the range is empty: 3 is above 1"),
        ("x.{a..b}", 2, "`{a..b}` is not a range of two whole numbers"),
        ("x.{0..99999}", 2, "a range of more than 10000 numbers"),
        ("layer[34]", 5, "`[` and `]` are not part of patterns"),
        ("x.*a*a*a*a*b", 2, "more than 4 `*` in one segment"),
        ("a" * 1001, 0, "longer than 1000 characters"),
    ],
)
def test_what_is_no_pattern_says_where(pattern, offset, message):
    with pytest.raises(PatternError) as caught:
        parse_pattern(pattern)
    assert (str(caught.value), caught.value.offset) == (message, offset)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("re:(a", "not a regular expression: missing ), unterminated subpattern"),
        ("re:(a+)+b", "repeats a group that repeats or chooses itself, which may take forever"),
        ("re:((a+))+b", "repeats a group that repeats or chooses itself, which may take forever"),
        ("re:(a|a)*b", "repeats a group that repeats or chooses itself, which may take forever"),
        ("re:(?:x(a|b))*b", "repeats a group that repeats or chooses itself, which may take forever"),
        ("re:.*a.*a.*a.*a.*b", "more than 4 repeats, which may take forever"),
        ("re:" + "a" * 1001, "longer than 1000 characters"),
    ],
)
def test_what_is_no_regular_expression_says_so(pattern, message):
    with pytest.raises(PatternError) as caught:
        parse_regex(pattern)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "pattern",
    [r"re:blocks\.[0-9]+\.(q|k|v)_proj", r"re:(?:layer\d)+", r"re:.*\.(attn|mlp)\..*", r"re:[*+]+a\(b\)*"],
)
def test_usual_regular_expressions_are_accepted(pattern):
    assert parse_regex(pattern).pattern == pattern.removeprefix("re:")
