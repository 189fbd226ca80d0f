"""What is done to every text, reference and hypothesis of every system alike, before words are compared.

In this order: `[...]` (non-speech marks) and accents are dropped; upper case; titles are written out
(MR. -> MISTER); currency, percent, clock times, ordinals, decimals, years and whole numbers become words;
hyphens and all other signs become spaces; apostrophes stay only within words. American and British spelling are
not unified, nor are compounds ("any one"): they count as errors, for every system alike.

That is for English. Words of other letters (those of a checkpoint's vocabulary) are kept as it spells them: in its
case, without the accents that it lacks. Their numbers are not written out.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

ENGLISH = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ'")
ONES = (
    "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN "
    "SEVENTEEN EIGHTEEN NINETEEN"
).split()
TENS = "- - TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split()
SCALES = ((10**12, "TRILLION"), (10**9, "BILLION"), (10**6, "MILLION"), (1000, "THOUSAND"), (100, "HUNDRED"))
ORDINALS = {
    "ONE": "FIRST",
    "TWO": "SECOND",
    "THREE": "THIRD",
    "FIVE": "FIFTH",
    "EIGHT": "EIGHTH",
    "NINE": "NINTH",
    "TWELVE": "TWELFTH",
}
WRITTEN_OUT = {
    "MR": "MISTER",
    "MRS": "MISSUS",
    "DR": "DOCTOR",
    "ST": "SAINT",
    "ETC": "ET CETERA",
    "VS": "VERSUS",
    "OK": "OKAY",
}
CURRENCIES = {"$": ("DOLLAR", "DOLLARS"), "£": ("POUND", "POUNDS"), "€": ("EURO", "EUROS")}
SIGNS = {"&": " AND ", "%": " PERCENT ", "+": " PLUS ", "=": " EQUALS "}

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_CURRENCY = re.compile(r"([$£€]) ?(\d+)(\.\d+)?((?: (?:THOUSAND|MILLION|BILLION|TRILLION))?)")
_CLOCK = re.compile(r"\b(\d{1,2}):(\d{2})\b")
_NUMBER = re.compile(r"(\d+)(?:\.(\d+)|(ST|ND|RD|TH)\b|('?S)\b)?")
MAX_DIGITS = 15  # a longer run of digits is read digit by digit


def normalise(text: str, letters: frozenset[str] = ENGLISH) -> str:
    """`"Mr. Hale's 2nd, 21%."` -> `"MISTER HALE'S SECOND TWENTY ONE PERCENT"`, whatever the case of `letters`.

    With letters that English lacks, those of German in lower case: `"Ä, das Café!"` -> `"ä das cafe"`.
    """
    if not is_english(letters):
        return _keep(text, letters)
    text = re.sub(r"\[[^\]]*\]", " ", text).replace("’", "'").replace("‘", "'")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).upper()
    text = _THOUSANDS.sub("", text)
    text = _CURRENCY.sub(_spell_currency, text)
    text = _CLOCK.sub(lambda m: f" {spell(int(m[1]))} {_spell_minutes(int(m[2]))} ", text)
    text = _NUMBER.sub(_spell_match, text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    words = (word.strip("'") for word in re.sub(r"[^A-Z']+", " ", text).split())
    return " ".join(WRITTEN_OUT.get(word, word) for word in words if word)


@lru_cache
def is_english(letters: frozenset[str]) -> bool:
    """Whether they have no letter but those of English, in either case."""
    return all(letter.upper() in ENGLISH for letter in letters if letter.isalpha())


def foreign(text: str, letters: frozenset[str]) -> set[str]:
    """The letters and digits of normalised text that are none of `letters`; of English text none is left."""
    return set() if is_english(letters) else {c for c in text if c.isalnum() and c not in letters}


def _keep(text: str, letters: frozenset[str]) -> str:
    """Every sign as `letters` has it; letters and digits that they lack as they are, others become spaces."""
    text = re.sub(r"\[[^\]]*\]", " ", text)
    for quote in {"’", "‘"} - letters:
        text = text.replace(quote, "'")
    clusters: list[str] = []
    for c in text:
        if clusters and unicodedata.category(c).startswith("M"):
            clusters[-1] += c  # an accent, to the letter before it
        else:
            clusters.append(c)
    words = (word.strip("'") for word in "".join(_fit(cluster, letters) for cluster in clusters).split())
    return " ".join(word for word in words if word)


@lru_cache(10_000)
def _fit(cluster: str, letters: frozenset[str]) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", cluster) if not unicodedata.combining(c))
    for form in (cluster, *(unicodedata.normalize(kind, cluster) for kind in ("NFC", "NFD")), plain):
        for cased in (form, form.lower(), form.upper()):
            if cased and letters.issuperset(cased):
                return cased
    return cluster if cluster[0].isalnum() else " "


def spell(number: int) -> str:
    """A cardinal as American English says it without "and": 1205 -> ONE THOUSAND TWO HUNDRED FIVE."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f" {ONES[ones]}" if ones else "")
    value, name = next(scale for scale in SCALES if number >= scale[0])
    many, rest = divmod(number, value)
    return f"{spell(many)} {name}" + (f" {spell(rest)}" if rest else "")


def spell_ordinal(number: int) -> str:
    """21 -> TWENTY FIRST, 20 -> TWENTIETH."""
    *before, last = spell(number).split()
    if last in ORDINALS:
        last = ORDINALS[last]
    else:
        last = last[:-1] + "IETH" if last.endswith("Y") else last + "TH"
    return " ".join([*before, last])


def spell_year(year: int) -> str:
    """Read in pairs: 1850 -> EIGHTEEN FIFTY, 1805 -> EIGHTEEN O FIVE, 1900 -> NINETEEN HUNDRED."""
    century, rest = divmod(year, 100)
    if rest == 0:
        return f"{spell(century)} HUNDRED"
    return f"{spell(century)} {spell(rest) if rest > 9 else f'O {ONES[rest]}'}"


def _spell_match(match: re.Match[str]) -> str:
    digits, decimals, ordinal, plural = match.groups()
    if len(digits) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return f" {_spell_digits(digits + (decimals or ''))} "
    number = int(digits)
    if decimals:
        return f" {spell(number)} POINT {_spell_digits(decimals)} "
    if ordinal:
        return f" {spell_ordinal(number)} "
    words = spell_year(number) if 1100 <= number <= 1999 or 2010 <= number <= 2099 else spell(number)
    if plural:  # the 1850s, the 80's
        words = words[:-1] + "IES" if words.endswith("Y") else words + "S"
    return f" {words} "


def _spell_digits(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)


def _spell_minutes(minutes: int) -> str:
    if minutes == 0:
        return "O'CLOCK"
    return spell(minutes) if minutes > 9 else f"O {ONES[minutes]}"


def _spell_currency(match: re.Match[str]) -> str:
    sign, whole, fraction, scale = match.groups()
    one, many = CURRENCIES[sign]
    if len(whole) > MAX_DIGITS:
        return f" {_spell_digits(whole)} {many} "
    if scale:
        return f" {spell(int(whole))}{f' POINT {_spell_digits(fraction[1:])}' if fraction else ''}{scale} {many} "
    words = f" {spell(int(whole))} {one if int(whole) == 1 else many} "
    if fraction and len(fraction) == 3 and int(fraction[1:]):
        words += f"AND {spell(int(fraction[1:]))} CENTS "
    return words
