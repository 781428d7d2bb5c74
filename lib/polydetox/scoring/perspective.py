"""The Perspective API, the paper's toxicity scorer, for as long as it lasts.

A few requests are under way at once, begun at a rate: with the cache around it, a killed run loses no other answers.
The key comes from ``PERSPECTIVE_API_KEY`` alone, in a header, so that it is in no log and no error message.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import tenacity

from polydetox.core.errors import UserError
from polydetox.data.corpora import summary_score
from polydetox.scoring.base import SEVENTEEN, Score, Scorer, missing, without_surrogates

ADDRESS = "https://commentanalyzer.googleapis.com"
LAST_DAY = datetime.date(2026, 12, 31)
KEY_VARIABLE, RATE_VARIABLE = "PERSPECTIVE_API_KEY", "PERSPECTIVE_API_RATE"

# What the published code asks for (sexually explicit text is scored in English only); the score is toxicity.
ATTRIBUTES = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")

ALTERNATIVES = (
    "use the scorer 'embedded', one of the ready checkpoints ('toxicity-lens', 'textdetox-xlmr-large', "
    "'detoxify-multilingual', 'distilbert-toxicity'), any 'huggingface:owner/name?languages=en,de', or saved responses "
    "('stored:folder')"
)

# Refusals that hold for this text for ever, by the service's own name for them.
_FINAL_REFUSALS = {
    "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE": "language not supported",
    "COMMENT_EMPTY": "no text",
    "COMMENT_TOO_LONG": "text too long",
}


# What passes: time-outs, conflicts, too many requests.
_PASSING = frozenset({408, 409, 421, 425, 429, 499})


class Patience(NamedTuple):
    """How long to wait, and how often to try again."""

    attempts: int = 10  # for one text
    first_wait: float = 1.0  # seconds at most; doubles with each attempt
    longest_wait: float = 60.0  # seconds
    timeout: float = 20.0  # seconds for one answer


class _TryAgain(Exception):
    """An answer that a later request may better, after so many seconds at least."""

    def __init__(self, problem: str, after: float = 0.0):
        super().__init__(problem)
        self.after = after


class PerspectiveScorer(Scorer):
    """Toxicity as Perspective gives it; a ``UserError`` where the service has ended or there is no key.

    Every answer is appended to the file ``responses``, in the layout that the ``stored`` scorer reads.
    """

    id = "perspective"
    languages = SEVENTEEN

    def __init__(
        self,
        address: str = ADDRESS,  # another server that speaks the protocol may stand in
        rate: float | None = None,  # requests a second; one is what every project is granted (PERSPECTIVE_API_RATE)
        concurrency: int = 4,  # requests under way at once
        patience: Patience | None = None,
        responses: Path | None = None,
    ):
        if address == ADDRESS and datetime.date.today() > LAST_DAY:
            raise UserError(f"the Perspective API ended on {LAST_DAY:%d %B %Y}; {ALTERNATIVES}")
        if address == ADDRESS and not os.environ.get(KEY_VARIABLE):
            raise UserError(f"scorer 'perspective': set {KEY_VARIABLE} in the environment, or {ALTERNATIVES}")
        if not re.fullmatch(r"[!-~]*", os.environ.get(KEY_VARIABLE, "")):
            raise UserError(f"scorer 'perspective': {KEY_VARIABLE} has a character that no key has, as a space or line "
                            "break; set it anew")  # fmt: skip
        self._address, self._rate = address, _rate() if rate is None else rate
        self._concurrency, self._patience, self._responses = concurrency, patience or Patience(), responses
        host = "" if address == ADDRESS else f"-{urlsplit(address).netloc}"
        self.revision = f"v1alpha1-{ATTRIBUTES[0]}{host}"

    def batches(self, texts: Sequence[str], language: str) -> Iterator[list[tuple[int, Score]]]:
        attempts, first, longest, timeout = self._patience
        stop, due = threading.Event(), 0.0
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TryAgain),
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_when_event_set(stop),
            wait=tenacity.wait_random_exponential(first, longest, min=first / 2)
            + tenacity.wait_exception(lambda problem: min(getattr(problem, "after", 0.0), longest)),
            sleep=tenacity.sleep_using_event(stop),
            retry_error_callback=lambda state: missing(
                f"{state.outcome and state.outcome.exception()} after {state.attempt_number} attempts", final=False
            ),
        )
        headers = {"X-Goog-Api-Key": key} if (key := os.environ.get(KEY_VARIABLE)) else {}
        with httpx2.Client(headers=headers, timeout=timeout) as client, ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for start in range(0, len(texts), self._concurrency):
                    requests = []
                    for text in texts[start : start + self._concurrency]:
                        time.sleep(max(0.0, due - time.monotonic()))
                        due = time.monotonic() + 1.0 / self._rate
                        requests.append(pool.submit(retrying, self._ask, client, text, language))
                    yield [(position, request.result()) for position, request in enumerate(requests, start)]
            finally:
                stop.set()  # of all waits

    def _ask(self, client: httpx2.Client, text: str, language: str) -> Score:
        """The score of a text from one request."""
        body = {
            "comment": {"text": without_surrogates(text)},  # which a model can emit, and cannot be sent
            "languages": [language],
            "requestedAttributes": {attribute: {} for attribute in ATTRIBUTES},
            "doNotStore": True,
        }
        try:
            response = client.post(f"{self._address}/v1alpha1/comments:analyze", json=body)
        except httpx2.TimeoutException:
            raise _TryAgain("time-out") from None
        except httpx2.HTTPError as error:
            raise _TryAgain(f"no connection ({type(error).__name__})") from None
        status = response.status_code
        if status in _PASSING or status >= 500:
            header = response.headers.get("retry-after", "")
            after = float(header) if header.replace(".", "", 1).isdigit() else 0.0  # it may be a date
            raise _TryAgain(f"HTTP {status}", after)
        if status != 200:
            return _refused(status, response.text)
        try:
            value = summary_score(answer := response.json())
        except ValueError:
            value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
            raise _TryAgain("broken answer")
        if self._responses is not None:
            line = json.dumps({"query": text, "prompt": None, "language": language, "response": answer}) + "\n"
            self._responses.parent.mkdir(parents=True, exist_ok=True)
            with open(self._responses, "ab", buffering=0) as file:  # one write: lines do not mix
                file.write(line.encode())
        return Score(float(value))


def _rate() -> float:
    given = os.environ.get(RATE_VARIABLE, "1")
    if not re.fullmatch(r"\d*\.?\d+", given) or float(given) == 0.0:
        raise UserError(f"{RATE_VARIABLE}={given}: not a number of requests a second; give one above 0")
    return float(given)


def _refused(status: int, answer: str) -> Score:
    """What a refusal means: a text that is never scored, or an error that stops everything.

    The service's own message is not quoted where it could hold the key.
    """
    reasons = re.findall(r'"(?:errorType|reason)":\s*"(\w+)"', answer)
    if final := [_FINAL_REFUSALS[reason] for reason in reasons if reason in _FINAL_REFUSALS]:
        return missing(final[0])
    if status in (401, 403) or "API_KEY_INVALID" in reasons:
        raise UserError(
            f"the Perspective API refused the key (HTTP {status}); check that {KEY_VARIABLE} is a key of a project for "
            f"which the API is enabled, or {ALTERNATIVES}"
        )
    if status in (404, 410):
        raise UserError(f"the Perspective API is not there any more (HTTP {status}); {ALTERNATIVES}")
    if status not in (400, 413, 422) or "FAILED_PRECONDITION" in answer:
        raise UserError(f"the Perspective API answered with HTTP {status}, which is not about the text; check address, "
                        f"proxy and the project of the key, or {ALTERNATIVES}")  # fmt: skip
    return missing(f"refused (HTTP {status})")
