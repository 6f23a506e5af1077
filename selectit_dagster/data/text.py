"""Text as curation sees it: normalised for comparison, split into words, made safe to show.

Nothing here changes a record. The normal form exists for comparison only; records leave
the project byte for byte as they came.
"""

from __future__ import annotations

import unicodedata

import regex

# whitespace and the invisible characters that make an empty text look filled
_BLANK = (
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005"
    "\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u200c\u200d"
    "\u2060\ufeff\xad"
)

# scripts that are written without blanks between words: one character is one word
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
# a letter and the marks that combine with it are one: with `re`, words of Indic scripts end at each
_WORDS = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])\w)+")
_TOKENS = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])\w)+|[^\w\s]")
# zero-width and direction marks: they hide a word from a search and show nothing
_HIDDEN = regex.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
# lower case, every whitespace a blank, and the mark between the texts of a record a line feed
_FOLDED = bytes(
    10 if code == 0 else 32 if chr(code).isspace() else ord(chr(code).lower()) if code < 128 else 63
    for code in range(256)
)
_ASCII_WORDS = regex.compile(r"\w+", regex.ASCII)


def is_blank(text: str) -> bool:
    """Tell whether ``text`` holds nothing that can be seen."""
    return not text.strip(_BLANK)


def normal_form(text: str) -> str:
    """Return ``text`` for comparison: NFKC, case folded, runs of whitespace as one blank.

    Invisible format characters are left out.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKC", _HIDDEN.sub("", text)).casefold()
    # folding can undo the normal form (for instance of a ligature), so it is applied again
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def normal_record(instruction: str, given: str, response: str) -> str:
    """Return a record in normal form: its three texts on a line each."""
    whole = f"{instruction}\x00{given}\x00{response}"
    if whole.isascii():
        # the same as the general way, three times quicker: most texts are of this kind
        whole = whole.encode("ascii").translate(_FOLDED).decode("ascii")
        while "  " in whole:
            whole = whole.replace("  ", " ")
        return whole.replace(" \n", "\n").replace("\n ", "\n").strip(" ")
    return "\n".join(map(normal_form, (instruction, given, response)))


def words(text: str) -> list[str]:
    """Return the words of ``text`` in its normal form, without punctuation.

    Words are runs of Unicode's word characters, the marks that combine with them included (UTS 18);
    a character of a script without blanks (Han, Kana, Thai, ...) with its marks is a word.
    """
    if text.isascii():
        return list(_ASCII_WORDS.findall(text.lower()))
    return list(_WORDS.findall(unicodedata.normalize("NFKC", text).casefold()))


def tokens_of(text: str) -> list[str]:
    """Return the words of ``text``, and each of its symbols and punctuation marks."""
    return list(_TOKENS.findall(unicodedata.normalize("NFKC", text).casefold()))
