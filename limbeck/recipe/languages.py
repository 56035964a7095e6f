"""Languages that can be told apart, by code, and the scripts that they are written in."""

from __future__ import annotations

LATIN = frozenset({"LATIN", "GREEK"})
"""Scripts that formulas and names bring into every text."""

_IN_LATIN = (
    "ace af an az bcl br bs ca crh cs cy da de en eo es et eu ext fi fo fr fuv fy ga gcf gcr gd gl gom gug guw ha "
    "hr ht hu id ig is it jv kab kik ku la lb lg lij ln lt ltg lv mg ms mt nl nn no nso oc om pcm pl pt qu ro rw se "
    "sk sl sn so sq st sv sw tk tl tr uz vec vi vo wa xh yo zu"
)
_IN_OTHERS = {
    "CJK": "zh wuu yue",
    "CJK HIRAGANA KATAKANA": "ja",
    "HANGUL CJK": "ko",
    "CYRILLIC": "ba be bg ky kk mk mn ru tg tt uk uzs",
    "CYRILLIC LATIN": "sr",
    "ARABIC": "ar ary arz fa ps sdh ug ur",
    "HEBREW": "he hbo",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "as bn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "TIBETAN": "dz",
    "MYANMAR": "my",
    "KHMER": "km",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "ETHIOPIC": "am",
    "GREEK": "el grc",
}

SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys(_IN_LATIN.split(), LATIN),
    **{code: frozenset(scripts.split()) for scripts, codes in _IN_OTHERS.items() for code in codes.split()},
}
"""Scripts of a language, named as Unicode names their letters. The codes are those of `py3langid`."""

KNOWN = frozenset().union(*SCRIPTS.values())
