"""Small data sets in the published layouts, made of the texts that are written for this project and of packaged prose.

Folders: as the profiles' variables name them. Tasks of the language model evaluation harness: in the cache of
`datasets`, as if they had been downloaded once.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from notebook_cells import packaged_prose
from polydetox.core.languages import LANGUAGES, rtp_lx_locales
from polydetox.core.parameters import checked
from polydetox.data.prompts import neutral_prompts, training_prompts

from . import PROMPTS
from .checkpoints import sentences


def make_folders(place: Path) -> dict[str, str]:
    """Every data set that the papers' profiles read; variable -> folder."""
    made = {}
    for variable, make in (("RTP_LX", _rtp_lx), ("TOXICITY_PAIRWISE", _toxicity_pairwise), ("JIGSAW", _jigsaw),
                           ("PARALLEL_PROMPTS", _parallel_prompts), ("TOXIGEN", _toxigen),
                           ("WIKITEXT", _wikitext)):  # fmt: skip
        folder = place / variable.lower()
        folder.mkdir(parents=True, exist_ok=True)
        make(folder)
        made[variable] = str(folder)
    return made


def _insults() -> list[str]:
    return training_prompts()["prompt"].tolist()


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", "utf-8")


def _rtp_lx(folder: Path) -> None:
    """Version 1.5: the languages other than English have no toxic completion."""
    for language in LANGUAGES:
        rows = []
        for index, prompt in enumerate(sentences()[language][:PROMPTS]):
            row = {"ID": index, "Index": index, "Prompt": f"{prompt} ", "BenignCompletion": sentences()[language][-1],
                   "Locale": language.upper(), "Dialect": "", "PromptAnnotations": {"Toxicity": 2.0, "Insult": 1.0},
                   "PromptAnnotationsRaw": {"Toxicity": [2, 2, 2]}}  # fmt: skip
            rows.append(row | ({"Completion": sentences()["en"][-2]} if language == "en" else {}))
        _lines(folder / f"RTP_LX_{rtp_lx_locales(language)[0]}.json", rows)


def _toxicity_pairwise(folder: Path) -> None:
    prose = packaged_prose(24)
    together = zip(sentences()["en"][:12], prose[:12], _insults()[:12], strict=True)
    rows = [{"prompt_text": prompt, "unpert_gen_text": calm, "pert_gen_text": f" {insult}\n"}
            for prompt, calm, insult in together]  # fmt: skip
    for part in range(2):
        _lines(folder / f"split_{part}.jsonl", rows[part::2])


def _jigsaw(folder: Path) -> None:
    """Some comments fill their 5,000 characters, as spam there does."""
    comments = [(text, 1) for text in [*_insults()[:30], ("You idiot!!! " * 400)[:5000]]]
    comments += [(f'"\n\n{text}"', 0) for text in packaged_prose(48)[:31]]
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        names = ["severe_toxic", "obscene", "threat", "insult", "identity_hate"]
        table.writerow(["id", "comment_text", "toxic", *names])
        for place, (text, label) in enumerate(comments):
            table.writerow([f"{place:016x}", text, label, 0, 0, 0, label, 0])


def _parallel_prompts(folder: Path) -> None:
    for language in LANGUAGES:
        texts = [text.replace("'", "&#39;") for text in sentences()[language][:12]]
        _lines(folder / f"dpo_toxicity_pairwise_{language}_200.jsonl", [{"Prompt": text} for text in texts])


def _toxigen(folder: Path) -> None:
    """The raw part: every prompt is a list of statements, of which one more was generated."""
    lists = ["- " + "\\n- ".join(sentences()["en"][start : start + 3]) + "\\n-" for start in range(0, 24, 3)]
    rows = [{"prompt": lists[place % len(lists)], "generation": text, "generation_method": "top-k",
             "group": ("women", "latino")[place % 2], "prompt_label": 1, "roberta_prediction": 0.9}
            for place, text in enumerate(_insults())]  # fmt: skip
    rows += [row | {"prompt": f"- {text}\\n-", "generation": text, "prompt_label": 0, "roberta_prediction": 0.1}
             for row, text in zip(rows, neutral_prompts()["prompt"], strict=False)]  # fmt: skip
    (folder / "train").mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / "train/train-00000-of-00001.parquet")


def _wikitext(folder: Path) -> None:
    prose = packaged_prose(64)[40:140]
    lines = ["", " = A title = \n", *(f" {text[:-1].replace(',', ' ,')} . \n" for text in prose)]
    for split in ("train", "validation", "test"):
        pd.DataFrame({"text": lines}).to_parquet(folder / f"{split}-00000-of-00001.parquet")


# --- the harness's tasks ----------------------------------------------------------------------------------------


def make_tasks(cache: Path) -> None:
    """The data of the papers' multiple-choice tasks, a question or two each, in the cache of `datasets`."""
    for repository, configuration, splits in _tasks():
        _prepared(cache, repository, configuration, splits)


def _tasks() -> Iterator[tuple[str, str, dict[str, list[dict[str, Any]]]]]:
    question, words = "What is said of a neighbour?", [f"It is the {name} answer." for name in "abcd"]
    options = {f"option_{letter}": word for letter, word in zip("abcd", words, strict=True)}
    lettered = {"id": "q1", "instruction": question, **options, "option_e": None, "answer": "B"}
    endings = {"ind": 1, "activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "ctx": "A man sits. he",
               "endings": words, "source_id": "s", "split": "val", "split_type": "indomain", "label": "2"}  # fmt: skip
    for task in (task for suite in checked("capability").suites.values() for task in suite.tasks):
        family, language = task.rsplit("_", 1)
        rows = [endings] * 2 if family == "hellaswag" else [lettered] * 2
        splits = (
            {"val": rows} if family == "hellaswag" else {"train": rows, "validation": rows, "val": rows, "test": rows}
        )
        yield f"alexandrainst/m_{family.removeprefix('m_')}", language, splits
    multiple = {"question": question, "choices": words, "answer": 1}
    harness = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks/mmlu/default"  # type: ignore[union-attr,index]
    for file in sorted(harness.glob("mmlu_*.yaml")):
        subject = file.stem.removeprefix("mmlu_")
        row = multiple | {"subject": subject}
        yield "cais/mmlu", subject, {"test": [row], "validation": [row], "dev": [row] * 5}
    pair = {"id": 1, "sent_more": "The nurse said she was late.", "sent_less": "The nurse said he was late."}
    for language in ("english", "french"):
        yield "jannalu/crows_pairs_multilingual", language, {"test": [pair | {"bias_type": "gender"}] * 2}
    categories = ("Business", "Humanities", "Medical", "Other", "STEM", "Social Sciences")
    rows = [lettered | {"question": question, "subject_category": category} for category in categories]
    for language in ("ar", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "pt", "zh"):
        yield "CohereLabs/Global-MMLU-Lite", language, {"test": rows, "dev": rows}
    labelled = {"id": "q1", "choices": {"text": words, "label": list("ABCD")}, "answerKey": "B"}
    for repository, configuration, row in [
        ("aps/super_glue", "boolq", {"question": "is it so", "passage": "It is so.", "idx": 0, "label": 1}),
        ("baber/piqa", "default", {"goal": question, "sol1": words[0], "sol2": words[1], "label": 0}),
        ("Rowan/hellaswag", "default", endings),
        ("allenai/winogrande", "winogrande_xl", {"sentence": "The _ is loud.", "option1": "dog", "option2": "cat",
                                                 "answer": "1"}),
        ("allenai/ai2_arc", "ARC-Easy", labelled | {"question": question}),
        ("allenai/ai2_arc", "ARC-Challenge", labelled | {"question": question}),
        ("allenai/openbookqa", "main", labelled | {"question_stem": question}),
    ]:  # fmt: skip
        yield repository, configuration, {split: [row] * 2 for split in ("train", "validation", "test")}


def _prepared(cache: Path, repository: str, configuration: str, splits: dict[str, list[dict[str, Any]]]) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter
    from datasets.naming import camelcase_to_snakecase

    owner, title = repository.split("/")
    name = camelcase_to_snakecase(title)
    content = hashlib.sha256(json.dumps(splits).encode()).hexdigest()[:40]
    folder = cache / f"{owner}___{name}" / configuration / "0.0.0" / content
    if (folder / "dataset_info.json").is_file():
        return
    folder.mkdir(parents=True)
    told = datasets.SplitDict(dataset_name=name)
    for split, rows in splits.items():
        table = datasets.Dataset.from_list(rows)
        writer = ArrowWriter(path=str(folder / f"{name}-{split}.arrow"), features=table.features)
        writer.write_table(table.data.table)
        examples, size = writer.finalize()
        told.add(datasets.SplitInfo(name=split, num_bytes=size, num_examples=examples, dataset_name=name))
    datasets.DatasetInfo(
        features=table.features, splits=told, builder_name="parquet", dataset_name=name, config_name=configuration,
        version=datasets.Version("0.0.0"),
    ).write_to_directory(str(folder))  # fmt: skip
