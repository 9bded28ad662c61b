# ruff: noqa: E501  the texts are data
"""Traps of YAML and TOML: each is refused with its place, or read as a person means it."""

from __future__ import annotations

import time

import pytest

V = "version: 1\n"
YAML = {
    "on": (
        "version: 1\nqat: {schedule: {freeze_bn_after: on}}",
        ["QC103 2:35 `qat.schedule.freeze_bn_after`: expected a whole number, got the text `on`"],
    ),
    "no": (
        "version: 1\ncalib: {batches: no}",
        ["QC103 2:18 `calib.batches`: expected a whole number, got the text `no`"],
    ),
    "boolx": (
        "version: 1\nqconfig: {module_name: {a: {use: w8a8, optional: yes}}}",
        ["QC103 2:50 `qconfig.module_name.a.optional`: expected true or false, got the text `yes`"],
    ),
    "one_true": (
        "version: 1\nqconfig: {module_name: {a: {use: w8a8, optional: 1}}}",
        ["QC103 2:50 `qconfig.module_name.a.optional`: expected true or false, got the number 1"],
    ),
    "oct": (
        "version: 1\ncalib: {batches: 012}",
        ["QC006 2:18 `012` has a leading zero: octal to some readers, decimal to others"],
    ),
    "sexa": (
        "version: 1\ncalib: {batches: 12:30}",
        ["QC103 2:18 `calib.batches`: expected a whole number, got the text `12:30`"],
    ),
    "exp": ("version: 1\nqat: {optimizer: {name: SGD, lr: 1e-3}}", []),
    "under": ("version: 1\ncalib: {batches: 1_000}", []),
    "hexx": ("version: 1\ncalib: {batches: 0x10}", []),
    "nan": ("version: 1\nqat: {grad_clip: .nan}", ["QC006 2:18 `.nan` is not a finite number"]),
    "inf": ("version: 1\nqat: {grad_clip: .inf}", ["QC006 2:18 `.inf` is not a finite number"]),
    "big": ("version: 1\nqat: {grad_clip: 1e400}", ["QC006 2:18 `1e400` is not a finite number"]),
    "nan2": (
        "version: 1\nqat: {grad_clip: nan}",
        ["QC103 2:18 `qat.grad_clip`: expected a number, got the text `nan`"],
    ),
    "date": (
        "version: 1\nx-d: 2024-13-45\ncalib: {batches: 2024-01-01}",
        ["QC103 3:18 `calib.batches`: expected a whole number, got the text `2024-01-01`"],
    ),
    "tag": (
        'version: 1\ncalib: {batches: !!int "3"}',
        ["QC005 2:18 tags such as `!!int` are not used here"],
    ),
    "pytag": (
        "version: 1\nx-a: !!python/object/apply:os.system [ls]",
        ["QC005 2:6 tags such as `!!python/object/apply:os.system` are not used here"],
    ),
    "badtag": (
        "version: 1\nx-b: !!bool maybe",
        ["QC005 2:6 tags such as `!!bool` are not used here"],
    ),
    "dup": ("version: 1\ncalib: {batches: 1, batches: 2}", ["QC003 2:21 the key `batches` appears twice"]),
    "merge": ("version: 1\ncalib: {<<: {batches: 1}}", ["QC005 2:9 merge keys (`<<`) are not used here"]),
    "selfref": ("version: 1\nx-a: &x [*x]", ["QC005 2:10 `*x` is inside of what it names"]),
    "undef": ("version: 1\nx-a: *y", ["QC005 2:6 no `&y` comes before this alias"]),
    "mbomb": ("a: &a {x: 1}\nb: &b {<<: [*a,*a,*a]}\n", ["QC005 2:8 merge keys (`<<`) are not used here"]),
    "twodoc": ("version: 1\n---\nversion: 1\n", ["QC005 2:1 a second document starts here"]),
    "ckey": ("version: 1\n? [a, b]\n: 1\n", ["QC005 2:3 a key must be a plain text"]),
    "nullkey": ("version: 1\n~: 1\n", ["QC101 2:1 unknown key `~`"]),
    "aliaskey": ("version: 1\nx-a: &k foo\n*k : 1", ["QC005 3:1 a key must be a plain text"]),
    "empty": ("", ["QC007 1:1 the file is empty"]),
    "comment": ("# nothing\n", ["QC007 1:1 the file is empty"]),
    "scalar": ("hello", ["QC007 1:1 a config is a mapping, this is the text `hello`"]),
    "lst": ("- 1\n", ["QC007 1:1 a config is a mapping, this is a list"]),
    "tab": (
        "version: 1\ncalib:\n\tbatches: 1\n",
        ["QC001 3:1 not valid YAML: found character that cannot start any token"],
    ),
    "colon": (
        "version: 1\ncalib:\n  batches 1\nqat:\n  epochs: 1\n",
        ["QC103 3:3 `calib`: expected a mapping, got the text `batches 1`"],
    ),
    "quote": ('version: 1\nx-a: "abc\n', ["QC001 2:6 not valid YAML: found unexpected end of stream"]),
    "at": (
        "version: 1\nx-a: @foo\n",
        ["QC001 2:6 not valid YAML: found character that cannot start any token"],
    ),
    "indent": (
        "version: 1\ncalib:\n    batches: 1\n  samples: 2\n",
        ["QC001 4:3 not valid YAML: the indentation does not fit"],
    ),
    "bracket": (
        "version: 1\nqconfig: {global: w8a8\ncalib:\n  batches: 1\n",
        ["QC001 3:6 not valid YAML: did not find expected ',' or '}'"],
    ),
    "nul": ("version: 1\n\x00", ["QC002 2:1 the character U+0000 is not allowed in a config"]),
    "esc": ("version: 1\nx-\x1b[31m: 1\n", ["QC002 2:3 the character U+001B is not allowed in a config"]),
    "latin": (b"version: 1\n# \xe9\n", ["QC002 2:3 the byte 0xe9 is not UTF-8"]),
    "bom": ("\ufeffversion: 1\n", []),
    "crlf": ("version: 1\r\ncalib:\r\n  batchs: 1\r\n", ["QC101 3:3 unknown key `batchs` in `calib`"]),
    "ls": ("version: 1 # a\u2028b\n", ["QC002 1:15 the character U+2028 is not allowed in a config"]),
    "dashdoc": ("---\nversion: 1\n...\n", []),
    "percent": ("%YAML 1.1\n---\nversion: 1\n", []),
    "emptykey": ("version: 1\n'': 1\n", ["QC101 2:1 unknown key ``"]),
    "verstr": ('version: "1"', ["QC106 1:10 the version of a config is a number, this is the text `1`"]),
    "verfloat": ("version: 1.0", ["QC106 1:10 config version 1.0 is not known"]),
    "ver2": ("version: 2", ["QC106 1:10 config version 2 is not known"]),
    "vernull": ("version:", ["QC106 1:9 the version of a config is a number, this is null"]),
    "noversion": ("calib: {batches: 1}\n", ["QC102 1:1 the key `version` is missing"]),
}
TOML = {
    "ok": ("version = 1\n", []),
    "dup": ("version = 1\n[calib]\nbatches=1\nbatches=2\n", ["QC003 4:1 the key `batches` appears twice"]),
    "duptable": ("version = 1\n[calib]\nbatches=1\n[calib]\n", ["QC003 4:2 the key `calib` appears twice"]),
    "nan": ("version = 1\n[qat]\ngrad_clip = nan\n", ["QC006 3:13 `nan` is not a finite number"]),
    "date": (
        "version = 1\n[calib]\nbatches = 2024-01-01\n",
        ["QC006 3:11 dates and times such as `2024-01-01` are not used here"],
    ),
    "unk": ("version = 1\n[calib]\nbatchs = 1\n", ["QC101 3:1 unknown key `batchs` in `calib`"]),
    "wrong": (
        'version = 1\n[qconfig.module_name]\n"a.*" = {preset="w8a9"}\n',
        ["QC120 3:17 unknown qconfig `w8a9`"],
    ),
    "syn": (
        "version = 1\n[calib\nbatches = 1\n",
        ["QC001 2:7 not valid TOML: expected ']' at the end of a table declaration"],
    ),
    "syn2": ("version = 1\ncalib = {batches = 1\n", ["QC001 2:21 not valid TOML: unclosed inline table"]),
    "dupdotted": (
        "version = 1\nqat.epochs = 1\nqat.epochs = 2\n",
        ["QC003 3:5 the key `epochs` appears twice"],
    ),
    "aot": ("version = 1\n[[calib]]\nbatches=1\n", ["QC103 2:3 `calib`: expected a mapping, got a list"]),
    "null": ('version = 1\n[qconfig.module_name]\nstem = "null"\nhead = "w8a8"\n', []),
    "inl": (
        'version = 1\nqat = {optimizer = {name = "SGD", lr = "x"}, bn = "fol"}\n',
        [
            "QC103 2:40 `qat.optimizer.lr`: expected a number, got the text `x`",
            "QC104 2:51 `qat.bn`: `fol` is not allowed",
        ],
    ),
    "multi": (
        'version = 1\nx-a = """\nabc\n"""\n[calib]\nbatches = "1"\n',
        ["QC103 6:11 `calib.batches`: expected a whole number, got the text `1`"],
    ),
    "empty": ("", ["QC007 1:1 the file is empty"]),
    "bad": ("\x01", ["QC002 1:1 the character U+0001 is not allowed in a config"]),
    "surro": (
        'version = 1\na = "\\ud800"',
        ["QC001 2:12 not valid TOML: escaped character is not a Unicode scalar value"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), YAML.values(), ids=YAML)
def test_a_trap_of_yaml_is_reported_at_its_place(text, expected, brief):
    assert brief(text) == expected


@pytest.mark.parametrize(("text", "expected"), TOML.values(), ids=TOML)
def test_a_trap_of_toml_is_reported_at_its_place(text, expected, brief):
    assert brief(text, name="c.toml") == expected


def bomb(levels):
    lines = ["x-0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x-{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return V + "\n".join(lines)


BOMBS = {
    "aliases": (bomb(9), "QC004"),
    "depth": (V + "x-a: " + "[" * 100_000, "QC004"),
    "depth of blocks": (V + "".join(f"{' ' * i}a:\n" for i in range(900)), "QC004"),
    "width": (V + "x-a: [" + "1," * 300_000 + "]", "QC004"),
    "mapping": (V + "x-a: {" + ",".join(f"k{i}: 1" for i in range(80_000)) + "}", "QC004"),
    "integer": (V + "calib: {batches: " + "9" * 500_000 + "}", "QC006"),
    "text": (V + "calib: {batches: " + "a" * 1_000_000 + "}", "QC103"),
    "key": (V + "a" * 500 + ": 1", "QC101"),
    "bytes": (V + "# " + "x" * (1 << 20), "QC004"),
    "unknown keys": (V + "".join(f"k{i}: 1\n" for i in range(24_000)), "QC101"),
    "rules": (
        V + "qconfig:\n  module_name:\n" + "".join(f"    n{i}: w8a9\n" for i in range(14_000)),
        "QC120",
    ),
}


SOON_S = 20  # it takes 0.3; a busy machine may take some times that, what a bomb costs is minutes


@pytest.mark.parametrize(("text", "code"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_soon(text, code, errors):
    start = time.process_time()
    assert errors(text)[0].code == code
    assert time.process_time() - start < SOON_S


TOML_BOMBS = {
    "depth": ("version = 1\nx-a = " + "[" * 100_000, "QC004"),
    "dotted": ("version = 1\n" + ".".join(["a"] * 2000) + " = 1", "QC004"),
    "integer": ("version = 1\n[calib]\nbatches = " + "9" * 5000, "QC006"),
    "hexadecimal": ("version = 1\n[calib]\nbatches = 0x" + "f" * 5000, "QC006"),
    "width": ("version = 1\nx-a = [" + "1," * 150_000 + "]", "QC004"),
}


@pytest.mark.parametrize(("text", "code"), TOML_BOMBS.values(), ids=TOML_BOMBS)
def test_a_toml_bomb_is_refused_soon(text, code, errors):
    start = time.process_time()
    assert errors(text, name="c.toml")[0].code == code
    assert time.process_time() - start < SOON_S


def test_numbers_as_people_write_them(load):
    text = (
        V
        + "qat: {optimizer: {name: SGD, lr: 1e-3, momentum: .9}, epochs: 1_000, steps: null}\ncalib: {batches: 0x10}"
    )
    config = load(text)
    assert (config.qat.optimizer.lr, config.qat.optimizer.momentum) == (1e-3, 0.9)
    assert (config.qat.epochs, config.calib.batches) == (1000, 16)


def test_keys_are_texts_as_they_stand(load):
    config = load(V + "qconfig: {module_name: {0: w8a8, 012: w8a8, on: w8a8, null: w8a8, 1.5: w8a8}}")
    assert [rule.pattern for rule in config.rules("calib").rules] == ["0", "012", "on", "null", "1.5"]


def test_an_array_that_is_never_closed_ends(brief):
    assert [line[:5] for line in brief("version = [ 1\n}\n", name="c.toml")] == ["QC001"]
