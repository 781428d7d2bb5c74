"""The 17 languages of the paper: codes, names, and how other sources spell them."""

from __future__ import annotations

from polydetox.core.errors import UserError, nearest

# Code -> English name, in the order in which the paper's figures list the languages.
LANGUAGES: dict[str, str] = {
    "ar": "Arabic", "cs": "Czech", "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi",
    "id": "Indonesian", "it": "Italian", "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ru": "Russian", "sv": "Swedish", "zh": "Chinese",
}  # fmt: skip

# Languages written without spaces between words: a completion follows its prompt directly.
UNSPACED = frozenset({"ja", "zh"})

# RTP-LX names its files by locale, the code in capitals but for these. Its first version had two files of Portuguese;
# later ones call the Brazilian one PT.
_RTP_LX_LOCALES = {"zh": ("ZH-Hans",), "pt": ("PT", "PT-BR")}

# RTP-LX's other languages, which neither the paper nor a scorer here covers.
OTHER_RTP_LX_LOCALES = (
    "BCMS", "BG", "CA", "CY", "DA", "DE-CH", "EL", "ET", "FI", "HE", "HU", "LT", "LV", "NO-NB", "RO", "SK", "SL", "SW",
    "TH", "TR", "UK", "VI", "ZH-Hant",
)  # fmt: skip

# Spellings of supported languages that other publishers use.
_OTHER_SPELLINGS = {"zh-cn": "zh", "pt-pt": "pt"}


def rtp_lx_locales(language: str) -> tuple[str, ...]:
    """The locales in the file name ``RTP_LX_<LOCALE>.json`` that a language code may have, the usual one first."""
    return _RTP_LX_LOCALES.get(check_language(language), (language.upper(),))


def code_of_locale(locale: str) -> str | None:
    """The code of a locale in any spelling; in lower case where it is not supported, None where it is unknown."""
    spelled = {other.lower(): other.lower() for other in OTHER_RTP_LX_LOCALES} | _OTHER_SPELLINGS
    spelled |= {name.lower(): code for code in LANGUAGES for name in (code, *rtp_lx_locales(code))}
    return spelled.get(locale.lower().replace("_", "-"))


def check_language(language: str) -> str:
    """Return the code, or raise a ``UserError`` that names the nearest valid one."""
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}{nearest(language, LANGUAGES)}")
    return language
