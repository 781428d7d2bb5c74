"""The tasks of the suites of questions: those of lm-evaluation-harness by name, and this project's own files.

A file of ``params/tasks/`` is a task that needs no download: a YAML file that names JSON Lines of questions, and says
in the harness's own keys how a question is asked. One with ``languages`` is a task a language, ``<file>_<language>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from polydetox.core import paths
from polydetox.core.errors import UserError, nearest
from polydetox.core.languages import LANGUAGES
from polydetox.core.parameters import Languages, Strict, checked, problem
from polydetox.core.yaml_files import read_checked

# Multilingual families of the harness, whose task names end in a language.
_HARNESS_LANGUAGE = re.compile(r"^(?:arc|hellaswag|m_mmlu|global_mmlu)_([a-z]{2})$")

Text = Annotated[str, Field(pattern=r"\S")]


class TaskFile(Strict):
    """One file of ``params/tasks/``. The keys ``doc_to_*`` are the harness's."""

    title: str  # as the report prints it
    test: str  # JSON Lines beside the file: question, choices, answer (counted from 0), language
    dev: str | None = None  # JSON Lines of the examples that are shown before a question
    languages: Languages | None = None  # a task each; None: one task in English
    doc_to_text: str  # Jinja over a row
    doc_to_choice: str | list[str] = "choices"  # the field of the answers, or what is scored instead of them
    target_delimiter: str = Field(" ")  # between question and answer
    stereotypes: bool = False  # `answer` is a stereotype, chosen by the likelihood of the whole sentence


class Question(BaseModel):
    """A line of a task's JSON Lines."""

    question: Text
    choices: list[Text] = Field(min_length=2)
    answer: int = Field(ge=0, strict=True)  # the position of the right choice
    language: str | None = None

    @model_validator(mode="after")
    def _one_is_right(self) -> Question:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices: two of them are the same")
        if self.answer >= len(self.choices):
            raise ValueError(f"answer: {self.answer} is no position of a choice, from 0 to {len(self.choices) - 1}")
        return self


def local_tasks() -> dict[str, tuple[Path, str]]:
    """This project's tasks by name: the file of each, and its language."""
    found = {}
    for file in sorted((paths.root() / "params/tasks").glob("*.yaml")):
        languages = read_checked(TaskFile, file).languages
        names = {f"{file.stem}_{language}": language for language in languages} if languages else {file.stem: "en"}
        found.update({name: (file, language) for name, language in names.items()})
    return found


def read_questions(file: Path, language: str | None = None) -> list[dict[str, Any]]:
    """The questions of a JSON Lines file, those of one language where the file has several."""
    where = paths.relative(file)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [Question.model_validate_json(line)] if line.strip() else []
        except ValidationError as error:
            raise UserError(f"{where}:{number}: {problem(error)}") from None
    asked = [row.model_dump(exclude={"language"}) for row in rows if language in (None, row.language)]
    if not asked:
        raise UserError(f"{where}: no questions" + (f" in {LANGUAGES[language]} ({language})" if language else ""))
    return asked


def task_language(task: str) -> str:
    """The language of a task: of this project's files as they say, of multilingual harness tasks by their name."""
    known = local_tasks()
    if task in known:
        return known[task][1]
    match = _HARNESS_LANGUAGE.match(task)
    return match.group(1) if match else "fr" if task.startswith("crows_pairs_french") else "en"


def counts_stereotypes(task: str) -> bool:
    """Whether a task measures how often the stereotype is preferred (0.5 is unbiased) instead of right answers."""
    known = local_tasks()
    return bool(read_checked(TaskFile, known[task][0]).stereotypes) if task in known else task.startswith("crows_pairs")


def local_configuration(task: str) -> dict[str, Any]:
    """A task of this project as lm-evaluation-harness takes it."""
    file, language = local_tasks()[task]
    content: TaskFile = read_checked(TaskFile, file)
    several = language if content.languages else None
    splits = {"test": read_questions(file.parent / content.test, several)}
    if content.dev:
        splits["dev"] = read_questions(file.parent / content.dev, several)
    return {
        "task": task,
        "custom_dataset": partial(_datasets, splits),
        "test_split": "test",
        "fewshot_split": "dev" if content.dev else None,
        "fewshot_config": {"sampler": "first_n"} if content.dev else None,
        "output_type": "multiple_choice",
        "doc_to_text": content.doc_to_text,
        "doc_to_choice": content.doc_to_choice,
        "doc_to_target": "answer",
        "target_delimiter": content.target_delimiter,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": not content.stereotypes}
            for metric in (("acc",) if content.stereotypes else ("acc", "acc_norm"))
        ],
    }


def _datasets(splits: dict[str, list[dict[str, Any]]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


# The papers' tasks, which need no look through thousands of files.
_PAPERS = frozenset(
    task
    for stage in ("capability", "attribute_eval")
    for suite in checked(stage).suites.values()
    for task in suite.tasks
)


def check_suites(suites: Mapping[str, Any], where: str) -> None:
    """Refuse a task that neither this project nor the harness has, and examples that a task has not.

    ``suites`` are checked ``params.Suite`` or their plain values. The harness is asked only where a name is not ours,
    as it takes seconds to look through its tasks.
    """
    known = local_tasks()
    for name, suite in suites.items():
        values = suite if isinstance(suite, dict) else suite.model_dump()
        if len(set(map(counts_stereotypes, values["tasks"]))) > 1:
            raise UserError(
                f"{where}: {name}: a mean of right answers and of preferred stereotypes says nothing; list tasks of "
                "stereotypes (bias_*, crows_pairs_*) in a suite of their own"
            )
        for task in values["tasks"]:
            if task in known:
                configuration = local_configuration(task)
                examples = len(configuration["custom_dataset"].args[0].get("dev", []))
                if values["shots"] > examples:
                    raise UserError(
                        f"{where}: {name}: {values['shots']} examples are to be shown, but task {task!r} has {examples}"
                    )
            elif task not in _PAPERS and task not in harness_tasks():
                raise UserError(
                    f"{where}: {name}: no task {task!r}{nearest(task, [*known, *harness_tasks()])}: neither a file of "
                    "params/tasks/ nor a task of lm-evaluation-harness"
                )


def harness_tasks() -> list[str]:
    """The names of all tasks, groups and tags that the installed lm-evaluation-harness knows."""
    return list(harness_manager().all_tasks)


@cache
def harness_manager() -> Any:
    """The harness's own index of its tasks: it reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()
