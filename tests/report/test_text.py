import pytest

from sdkernels.report import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1234.5, "1,234"),
        (88.24, "88.2"),
        (1.234, "1.23"),
        (-0.0364, "-0.036"),
        (0.00046, "0.00046"),
        (-4.2e-5, "-4.2e-05"),
        (1e9, "1.0e+09"),
        (float("nan"), "NaN"),
        (float("-inf"), "-inf"),
    ],
)
def test_number_keeps_about_three_digits(value: float, shown: str) -> None:
    assert text.number(value) == shown


def test_signed_numbers_show_the_plus_but_zero_has_none() -> None:
    assert text.number(0.5, signed=True) == "+0.500"
    assert text.number(0.0, signed=True) == "0"


@pytest.mark.parametrize(
    ("shown", "nice"),
    [("-0.5", "−0.5"), ("-4.2e-05", "−4.2×10⁻⁵"), ("1.0e+09", "1.0×10⁹"), ("NaN", "NaN")],
)
def test_typographic_minus_and_powers(shown: str, nice: str) -> None:
    assert text.typographic(shown) == nice


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.21, "4.21 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_escape_neutralises_markup_and_quotes() -> None:
    escaped = text.escape("<script>alert(1)</script> \"double\" 'single' & co")
    assert not set("<>\"'") & set(escaped)
    assert "&lt;script&gt;" in escaped
    assert "&amp; co" in escaped


def test_visible_spells_out_what_could_mislead_and_keeps_what_is_text() -> None:
    assert text.visible("a\x00b\x1b[31m\r\x7f") == "a␀b␛[31m␍␡"
    assert text.visible("abc\u202edef\u2066") == "abc⟨U+202E⟩def⟨U+2066⟩"
    assert text.visible("\ud800") == "⟨U+D800⟩"
    kept = "größer 東京 👩‍👩‍👧 🏳️ עברית\n\tx"
    assert text.visible(kept) == kept


def test_visible_text_can_always_be_encoded() -> None:
    every = "".join(map(chr, range(0x3100))) + "\ud800\udfff"
    assert text.visible(every).encode("utf-8")


def test_script_json_cannot_close_the_script_element() -> None:
    dumped = text.script_json(["</script><!--", "&", "\u2028", "\ud800"])
    assert not set("<>&\u2028") & set(dumped)
    assert text.json.loads(dumped) == ["</script><!--", "&", "\u2028", "\ud800"]


def test_script_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        text.script_json([float("nan")])


def test_one_line_flattens_and_cuts() -> None:
    assert text.one_line(" a\n b\t c ") == "a b c"
    assert text.one_line("x" * 99, 10) == "x" * 9 + "…"


def test_display_width_counts_terminal_cells() -> None:
    assert text.display_width("東京") == 4
    assert text.display_width("e\u0301") == 1
