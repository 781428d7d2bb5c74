"""The 17 languages of the paper: codes, names, and how other sources spell them."""

from __future__ import annotations

from polydetox.errors import UserError, nearest

# Code -> English name, in the order in which the paper's figures list the languages.
LANGUAGES: dict[str, str] = {
    "ar": "Arabic",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "zh": "Chinese",
}

# Languages written without spaces between words: a completion follows its prompt directly.
UNSPACED = frozenset({"ja", "zh"})

# RTP-LX names its files by locale; every other language is its code in capitals.
_RTP_LX_LOCALES = {"zh": "ZH-Hans"}


def rtp_lx_locale(language: str) -> str:
    """The locale in the file name ``RTP_LX_<LOCALE>.json`` of a language code."""
    return _RTP_LX_LOCALES.get(check_language(language), language.upper())


def check_language(language: str) -> str:
    """Return the code, or raise a ``UserError`` that names the nearest valid one."""
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}{nearest(language, LANGUAGES)}")
    return language
