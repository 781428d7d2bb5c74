"""The 17 languages of the paper: codes, names, and how other sources spell them."""

from __future__ import annotations

from polydetox.core.errors import UserError, nearest

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

# RTP-LX names its files by locale, the code in capitals but for these. Its first version had two files of Portuguese;
# later ones call the Brazilian one PT.
_RTP_LX_LOCALES = {"zh": ("ZH-Hans",), "pt": ("PT", "PT-BR")}

# RTP-LX's other languages, which neither the paper nor a scorer here covers: locale -> name.
OTHER_RTP_LX_LOCALES: dict[str, str] = {
    "BCMS": "Bosnian, Croatian, Montenegrin, Serbian", "BG": "Bulgarian", "CA": "Catalan", "CY": "Welsh",
    "DA": "Danish", "DE-CH": "German (Switzerland)", "EL": "Greek", "ET": "Estonian", "FI": "Finnish", "HE": "Hebrew",
    "HU": "Hungarian", "LT": "Lithuanian", "LV": "Latvian", "NO-NB": "Norwegian (Bokmål)", "RO": "Romanian",
    "SK": "Slovak", "SL": "Slovenian", "SW": "Swahili", "TH": "Thai", "TR": "Turkish", "UK": "Ukrainian",
    "VI": "Vietnamese", "ZH-Hant": "Chinese (traditional)",
}  # fmt: skip

# Spellings of supported languages that other publishers use.
_OTHER_SPELLINGS = {"zh-cn": "zh", "pt-pt": "pt"}


def rtp_lx_locales(language: str) -> tuple[str, ...]:
    """The locales in the file name ``RTP_LX_<LOCALE>.json`` that a language code may have, the usual one first."""
    return _RTP_LX_LOCALES.get(check_language(language), (language.upper(),))


def language_of_locale(locale: str) -> str:
    """The language code of an RTP-LX locale; a ``UserError`` for one that is unknown, or known but not supported."""
    for language in LANGUAGES:
        if locale.lower() in (name.lower() for name in rtp_lx_locales(language)):
            return language
    for other, name in OTHER_RTP_LX_LOCALES.items():
        if locale.lower() == other.lower():
            raise UserError(f"RTP-LX's locale {other} ({name}) is not supported: it is none of the paper's languages")
    known = [name for language in LANGUAGES for name in rtp_lx_locales(language)]
    raise UserError(f"unknown locale {locale!r}{nearest(locale, [*known, *OTHER_RTP_LX_LOCALES])}")


def code_of_locale(locale: str) -> str | None:
    """The language code of a locale as files are named by it, whatever its case and whether with ``-`` or ``_``.

    Of a language that is known but not supported it is the locale in lower case; None for what is no known locale.
    """
    locale = locale.lower().replace("_", "-")
    if locale in _OTHER_SPELLINGS:
        return _OTHER_SPELLINGS[locale]
    if locale in (other.lower() for other in OTHER_RTP_LX_LOCALES):
        return locale
    spelled = {name.lower(): code for code in LANGUAGES for name in (code, *rtp_lx_locales(code))}
    return spelled.get(locale)


def known_locale(locale: str) -> str:
    """A locale as a person should read it among others: with a word where it is not supported or not known."""
    try:
        language_of_locale(locale)
    except UserError as error:
        return f"{locale} ({'not supported' if 'not supported' in str(error) else 'unknown'})"
    return locale


def check_language(language: str) -> str:
    """Return the code, or raise a ``UserError`` that names the nearest valid one."""
    if language not in LANGUAGES:
        raise UserError(f"unknown language {language!r}{nearest(language, LANGUAGES)}")
    return language
