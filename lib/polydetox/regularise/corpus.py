"""The corpus of attribute-controlled fine-tuning: half toxic, half neutral English text.

Of every row the prompt is given and the rest is learnt; the oracle judges the rest. Text that has no prompt of its own
gives its first words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox import paths
from polydetox.artifacts import Stage
from polydetox.data import is_blank, local_path, training_prompts
from polydetox.errors import UserError
from polydetox.params import ControlCorpusParameters, load_model

COLUMNS = ["row", "prompt", "text", "domain", "toxicity", "split"]
DOMAINS = ["toxic", "neutral"]


def make_corpus(settings: ControlCorpusParameters, stage: Stage) -> pd.DataFrame:
    """The corpus, with a part of each domain held out.

    Returns ``row`` (a number), ``prompt`` (how the text begins; given, not learnt), ``text``, ``domain`` (toxic or
    neutral), ``toxicity`` (of what follows the prompt) and ``split`` (train or held_out). Both domains have the same
    number of rows, and no prompt of its own is on both sides of the split.
    """
    from polydetox.scoring import CachedScorer, get_scorer

    scorer = CachedScorer(get_scorer(settings.scorer))
    if settings.source == "model":
        toxic = _sampled(settings, stage, scorer)
        neutral = packaged_prose(settings.max_words)
    else:
        toxic = toxigen(stage.reads(local_path(settings.toxigen)), settings.max_words)
        neutral = wikitext(stage.reads(local_path(settings.wikitext)), settings.max_words)
    rng = np.random.default_rng(settings.seed)
    count = min(settings.rows_per_domain, len(toxic), len(neutral))
    parts = []
    for domain, table in zip(DOMAINS, (toxic, neutral), strict=True):
        chosen = table.iloc[np.sort(rng.permutation(len(table))[:count])]
        rows = pd.DataFrame([_with_prompt(row, settings.prompt_words) for row in chosen.to_dict("records")])
        rows = rows.assign(domain=domain)
        if "toxicity" not in rows:
            rest = [text[len(prompt) :] for prompt, text in zip(rows["prompt"], rows["text"], strict=True)]
            rows["toxicity"] = scorer.score(rest, "en")
        rows["split"] = _split(rows["prompt"].tolist(), settings.held_out_share, rng)
        parts.append(rows)
    corpus = pd.concat(parts, ignore_index=True)
    corpus["row"] = np.arange(len(corpus))
    return corpus[COLUMNS]


def _with_prompt(row: dict[str, Any], words: int) -> dict[str, Any]:
    """A row with the part that is given, which for a text without its own prompt are its first words."""
    if "prompt" in row:
        return row
    found = re.match(r"\s*" + r"\S+\s+" * (words - 1) + r"\S+(?=\s)", row["text"]) if words else None
    return {"prompt": found[0] if found else "", **row}


def _split(prompts: list[str], share: float, rng: np.random.Generator) -> list[str]:
    """``train`` or ``held_out`` for each row; rows of one prompt go to one side, as long as there are several."""
    names = list(dict.fromkeys(prompts))
    if len(names) < 2:
        names = [str(number) for number in range(len(prompts))]
        prompts = names
    count = min(len(names) - 1, max(1, round(share * len(names))))
    held_out = {names[place] for place in rng.permutation(len(names))[:count]}
    return ["held_out" if prompt in held_out else "train" for prompt in prompts]


def _sampled(settings: ControlCorpusParameters, stage: Stage, scorer: Any) -> pd.DataFrame:
    """What the untuned model itself says after the training prompts, as far as the scorer calls it toxic."""
    from polydetox.generation import Sampling, generate
    from polydetox.models.checkpoints import checkpoint_of, provenance

    weights = checkpoint_of(settings.profile, settings.model)
    stage.reads(provenance(weights))
    sampling = Sampling(n=settings.n, temperature=settings.temperature, top_p=settings.top_p,
                        max_new_tokens=settings.max_new_tokens, seed=settings.seed)  # fmt: skip
    drawn = generate(weights, training_prompts(), sampling, stage.folder / "parts", engine=settings.engine,
                     dtype=load_model(settings.model).dtype)  # fmt: skip
    drawn = drawn[~drawn["empty"]].drop_duplicates(["prompt", "continuation"])
    drawn = drawn.assign(toxicity=scorer.score(drawn["continuation"].tolist(), "en"))
    threshold = scorer.threshold if settings.threshold is None else settings.threshold
    toxic = drawn[drawn["toxicity"] >= threshold]
    if len(toxic) < 2:
        raise UserError(
            f"{len(toxic)} of {len(drawn)} continuations are toxic for {settings.scorer!r} from {threshold} on; "
            "lower 'control: corpus: threshold', or raise 'n'"
        )
    texts = toxic["prompt"] + toxic["continuation"]
    return pd.DataFrame({"prompt": toxic["prompt"], "text": texts, "toxicity": toxic["toxicity"]})


# --- text that is at hand ---------------------------------------------------------------------------------------


def packaged_prose(max_words: int) -> pd.DataFrame:
    """Sentences of the documentation that comes with Python and scikit-learn: ``text``.

    Plain English sentences of ten words and more, without code, in the order of their sources.
    """
    from pydoc_data.topics import topics

    import sklearn

    descriptions = sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst"))
    sources = [*topics.values(), *(file.read_text("utf-8") for file in descriptions)]
    sentences = [sentence for source in sources for sentence in _sentences(source)]
    plain = [sentence for sentence in sentences if _is_plain(sentence, max_words)]
    return pd.DataFrame({"text": list(dict.fromkeys(plain))})


def _sentences(source: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", source):
        joined = re.sub(r"[*`\"“”]|\[\d+\]", "", " ".join(paragraph.split()))
        yield from re.split(r"(?<=[.!?])\s+(?=[A-Z])", joined)


def _is_plain(sentence: str, max_words: int) -> bool:
    """Whether this is a sentence of a person: no markup, names of functions, dotted names or numbers."""
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return (
        10 <= len(sentence.split()) <= max_words
        and re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:'()-]+\.", sentence) is not None
        and letters / len(sentence) > 0.95
        and not re.search(r"\(\)|[a-z]\.[a-z]|\b[a-z]+[A-Z]|::", sentence)
    )


# What the releases of ToxiGen call the text, and what says that it is toxic; the latter is 0 to 1, or 1 to 5.
_TOXIGEN_TEXT = ("generation", "text")
_TOXIGEN_LABEL = {"prompt_label": 0.5, "label": 0.5, "toxicity_human": 3.0}
_READERS: dict[str, Any] = {
    ".csv": pd.read_csv, ".jsonl": lambda file: pd.read_json(file, lines=True), ".parquet": pd.read_parquet,
}  # fmt: skip


def toxigen(place: Path, max_words: int) -> pd.DataFrame:
    """The toxic statements of ToxiGen: ``text``, at most ``max_words`` long.

    ``place`` is a file (CSV, JSON Lines or Parquet) or a folder of some. A statement is toxic by ``prompt_label``
    (it was generated as such), or by ``toxicity_human`` above 3 in the annotated release.
    """
    texts, known = [], False
    for file in _files(place, _READERS, "ToxiGen"):
        table = _read(file)
        text = next((name for name in _TOXIGEN_TEXT if name in table), None)
        label = next((name for name in _TOXIGEN_LABEL if name in table), None)
        if text is None or label is None:
            continue  # a release holds tables of other things as well
        known = True
        labels = pd.to_numeric(table[label], errors="coerce")
        toxic = table.loc[labels > _TOXIGEN_LABEL[label], text]
        texts += [_shortened(entry, max_words) for entry in toxic if not is_blank(entry)]
    if not known:
        raise UserError(
            f"{place}: no table with a column {' or '.join(_TOXIGEN_TEXT)} and one of {', '.join(_TOXIGEN_LABEL)}; "
            "is this ToxiGen?"
        )
    if len(texts) < 2:
        raise UserError(f"{place}: no two toxic statements there; is this ToxiGen?")
    return pd.DataFrame({"text": list(dict.fromkeys(texts))})


def wikitext(place: Path, max_words: int) -> pd.DataFrame:
    """The paragraphs of Wikitext, headings left out: ``text``, the first ``max_words`` of each.

    ``place`` is a file or a folder of ``*.tokens``, ``*.raw`` or ``*.txt`` (a paragraph a line), or Parquet with
    ``text``. Of a folder its training split is read, where files are named so.
    """
    readers = {".tokens": None, ".raw": None, ".txt": None, ".parquet": None}
    files = _files(place, readers, "Wikitext")
    files = [file for file in files if "train" in file.name] or files
    texts = []
    for file in files:
        if file.suffix == ".parquet":
            table = _read(file)
            if "text" not in table:
                raise UserError(f"{file}: no column 'text'; is this Wikitext?")
            lines = table["text"].astype(str).tolist()
        else:
            try:
                lines = file.read_text("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from None
        for line in lines:
            line = line.strip()
            if len(line.split()) >= 10 and not line.startswith("="):
                texts.append(_shortened(_without_markers(line), max_words))
    if len(texts) < 2:
        raise UserError(f"{place}: no two paragraphs there; is this Wikitext?")
    return pd.DataFrame({"text": list(dict.fromkeys(texts))})


def _without_markers(line: str) -> str:
    """Wikitext puts spaces around punctuation and marks those it added inside words and numbers by @."""
    line = re.sub(r" @(.)@ ", r"\1", line)
    return re.sub(r" ([,.;:!?')])", r"\1", line).replace("( ", "(")


def _shortened(text: str, max_words: int) -> str:
    return " ".join(text.split()[:max_words])


def _files(place: Path, suffixes: dict[str, Any], what: str) -> list[Path]:
    if place.is_file() and place.suffix in suffixes:
        return [place]
    found = sorted(file for file in place.rglob("*") if file.suffix in suffixes) if place.is_dir() else []
    if not found:
        raise UserError(
            f"{paths.relative(place)}: no file of {what} there (one of {', '.join(suffixes)}); see `polydetox data`"
        )
    return found


def _read(file: Path) -> pd.DataFrame:
    try:
        return _READERS[file.suffix](file)
    except Exception as error:  # pandas raises many kinds; all mean that the file is damaged
        raise UserError(f"{file}: not readable ({str(error).splitlines()[0][:120]})") from None


def corpus_metrics(corpus: pd.DataFrame, settings: ControlCorpusParameters) -> dict[str, Any]:
    """What the report says of the corpus."""
    by_domain = corpus.groupby("domain")
    return {
        "source": settings.source,
        "scorer": settings.scorer,
        "rows": len(corpus),
        "held_out": int((corpus["split"] == "held_out").sum()),
        "words": int(corpus["text"].str.split().str.len().sum()),
        **{f"toxicity_{domain}": float(by_domain.get_group(domain)["toxicity"].mean()) for domain in DOMAINS},
    }
