"""The corpus of attribute-controlled fine-tuning: half toxic, half neutral English text.

Of every row the prompt is given and the rest is learnt; the oracle judges the rest. Text that has no prompt of its own
gives its first words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from polydetox.core.artifacts import Stage
from polydetox.core.errors import UserError
from polydetox.core.parameters import Settings
from polydetox.data import corpora
from polydetox.data.catalogue import local_path
from polydetox.data.pairs import letters
from polydetox.data.prompts import load_prompts, prompt_file, training_prompts
from polydetox.data.rows import Skipped

COLUMNS = ["row", "prompt", "text", "domain", "toxicity", "split"]
DOMAINS = ["toxic", "neutral"]


def make_corpus(settings: Settings, stage: Stage) -> tuple[pd.DataFrame, int]:
    """The corpus, with a part of each domain held out, and how many statements belong to evaluated prompts.

    Returns ``row`` (a number), ``prompt`` (how the text begins; given, not learnt), ``text``, ``domain`` (toxic or
    neutral), ``toxicity`` (of what follows the prompt) and ``split`` (train or held_out). Both domains have the same
    number of rows, and no prompt of its own is on both sides of the split. Statements that belong to evaluated prompts
    are left out.
    """
    from polydetox.scoring import CachedScorer, get_scorer

    scorer = CachedScorer(get_scorer(settings.scorer))
    stage.scores_with(scorer)
    if settings.source == "model":
        toxic = _sampled(settings, stage, scorer)
        neutral = packaged_prose(settings.max_words)
        evaluated = 0
    else:
        place = stage.reads(local_path(settings.toxigen))
        toxic, skipped, evaluated = toxic_statements(place, settings.max_words, _evaluated_prompts(settings, stage))
        stage.skips(skipped)
        neutral, skipped = neutral_paragraphs(stage.reads(local_path(settings.wikitext)), settings.max_words)
        stage.skips(skipped)
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
    return corpus[COLUMNS], evaluated


def _evaluated_prompts(settings: Settings, stage: Stage) -> list[str]:
    """The English ones, since the statements are English."""
    source, folder = settings.prompts_source, settings.prompts_folder
    stage.reads(prompt_file(source, "en", folder))
    return load_prompts(source, "en", folder, settings.prompt_limit)[0]["prompt"].tolist()


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


def _sampled(settings: Settings, stage: Stage, scorer: Any) -> pd.DataFrame:
    """What the untuned model itself says after the training prompts, as far as the scorer calls it toxic."""
    from polydetox.generation import Sampling, generate
    from polydetox.models.checkpoints import weights_of

    weights = weights_of(settings.checkpoint, stage)
    sampling = Sampling(n=settings.n, temperature=settings.temperature, top_p=settings.top_p,
                        max_new_tokens=settings.max_new_tokens, seed=settings.seed)  # fmt: skip
    drawn = generate(weights, training_prompts(), sampling, stage.folder / "parts", engine=settings.engine,
                     dtype=settings.dtype)  # fmt: skip
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


def toxic_statements(place: Path, max_words: int, evaluated: Collection[str] = ()) -> tuple[pd.DataFrame, Skipped, int]:
    """The toxic statements of ToxiGen that belong to no evaluated prompt: ``text``, at most ``max_words`` long.

    A statement belongs to a prompt if it was generated from it, stands in its list, or has the text of one that does,
    whatever its case, spaces and punctuation. Returned with what was left out, and how many belong to evaluated
    prompts.
    """
    table, skipped = corpora.toxigen(place)
    toxic = table[table["toxic"]]
    if len(toxic) < 2:
        raise UserError(f"{place}: no two toxic statements there; is this ToxiGen?")
    generated = table["prompt"].isin(list(evaluated))
    held_out = {letters(line) for prompt in evaluated for line in prompt.split("\n")}
    held_out |= set(table.loc[generated, "text"].map(letters))
    belongs = (generated | table["text"].map(letters).isin(held_out - {""}))[toxic.index]
    texts = [_shortened(text, max_words) for text in toxic.loc[~belongs, "text"]]
    if len(texts) < 2:
        raise UserError(
            f"{place}: {belongs.sum()} of {len(toxic)} toxic statements belong to evaluated prompts, on which "
            "nothing is trained, so that no two are left; set 'prompts: limit:' in the profile, or lower it"
        )
    return pd.DataFrame({"text": list(dict.fromkeys(texts))}), skipped, int(belongs.sum())


def neutral_paragraphs(place: Path, max_words: int) -> tuple[pd.DataFrame, Skipped]:
    """The paragraphs of Wikitext's training split of ten words or more: ``text``, the first ``max_words`` of each."""
    table, skipped = corpora.wikitext(place)
    texts = [_shortened(_without_markers(text), max_words) for text in table["text"] if len(text.split()) >= 10]
    if len(texts) < 2:
        raise UserError(f"{place}: no two paragraphs there; is this Wikitext?")
    return pd.DataFrame({"text": list(dict.fromkeys(texts))}), skipped


def _without_markers(line: str) -> str:
    """Wikitext puts spaces around punctuation and marks those it added inside words and numbers by @."""
    line = re.sub(r" @(.)@ ", r"\1", line)
    return re.sub(r" ([,.;:!?')])", r"\1", line).replace("( ", "(")


def _shortened(text: str, max_words: int) -> str:
    return " ".join(text.split()[:max_words])


def corpus_metrics(corpus: pd.DataFrame, evaluated: int, settings: Settings) -> dict[str, Any]:
    """What the report says of the corpus; ``evaluated`` statements belong to evaluated prompts."""
    by_domain = corpus.groupby("domain")
    return {
        "source": settings.source,
        "scorer": settings.scorer,
        "rows": len(corpus),
        "held_out": int((corpus["split"] == "held_out").sum()),
        "evaluated_left_out": evaluated,
        "words": int(corpus["text"].str.split().str.len().sum()),
        **{f"toxicity_{domain}": float(by_domain.get_group(domain)["toxicity"].mean()) for domain in DOMAINS},
    }


def summary_of(metrics: dict[str, Any]) -> str:
    """One sentence or two on the corpus."""
    said = (
        f"{metrics['rows']:,} rows, half of each domain, {metrics['held_out']:,} of them held out; mean toxicity "
        f"{metrics['toxicity_toxic']:.2f} in the toxic half and {metrics['toxicity_neutral']:.2f} in the neutral one."
    )
    if metrics["source"] == "toxigen-wikitext":
        said += f" {metrics['evaluated_left_out']:,} toxic statements that belong to evaluated prompts were left out."
    return said
