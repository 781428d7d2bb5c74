"""The Perspective client against a local server with faults: nothing scored twice, lost, or 0 by failure."""

from __future__ import annotations

import collections
import datetime
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from polydetox.core.errors import UserError
from polydetox.scoring import CachedScorer, get_scorer, perspective
from polydetox.scoring.perspective import ATTRIBUTES, Patience, PerspectiveScorer
from polydetox.scoring.stored import StoredScorer

KEY = "a-secret-key-that-must-not-leak"
# An answer may be slow where other work shares the machine; only the fault "time-out" is to run into the limit.
FAST = Patience(attempts=6, first_wait=0.01, longest_wait=0.05, timeout=30.0)
TEXTS = [f"text number {number}" for number in range(60)]


def toxicity(text: str) -> float:
    """What the fake service thinks of a text."""
    return (sum(text.encode()) % 97 + 1) / 100


class FakeService:
    """A server that speaks the protocol. ``fault(text, attempt)`` may name what goes wrong with a request."""

    def __init__(self):
        self.fault = lambda text, attempt: None
        self.retry_after = "0.02"
        self.attempts: collections.Counter[str] = collections.Counter()
        self.answered: collections.Counter[str] = collections.Counter()
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                service.answer(self)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        text = request["comment"]["text"]
        with self._lock:
            self.attempts[text] += 1
            attempt = self.attempts[text]
            self.requests.append({**request, "path": handler.path})
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
        fault = self.fault(text, attempt)
        good = {
            "attributeScores": {
                name: {"summaryScore": {"value": toxicity(text), "type": "PROBABILITY"}} for name in ATTRIBUTES
            },
            "languages": request["languages"],
        }
        status, content, headers = 200, json.dumps(good).encode(), {}
        if fault == "truncated":
            content = content[: len(content) // 2]
        elif fault == "no score":
            content = b'{"attributeScores": {}}'
        elif fault == "time-out":
            time.sleep(2.0)
        elif fault == "closed":
            handler.close_connection = True
            handler.connection.close()
            return
        elif isinstance(fault, int):
            status, content = fault, b"<html>busy</html>"
            headers = {"Retry-After": self.retry_after} if fault == 429 else {}
        elif fault is not None:
            status = 400
            content = json.dumps({"error": {"code": 400, "message": fault, "details": [{"errorType": fault}]}}).encode()
        if fault is None:
            with self._lock:
                self.answered[text] += 1
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:  # the client has given up
            handler.close_connection = True


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    monkeypatch.delenv("PERSPECTIVE_API_RATE", raising=False)
    fake = FakeService()
    yield fake
    fake.close()


def scorer_of(service: FakeService, **changes) -> PerspectiveScorer:
    return PerspectiveScorer(**{"address": service.address, "rate": 2000.0, "patience": FAST, **changes})


def test_every_text_is_asked_for_once_and_as_published(service):
    scores = scorer_of(service).score([*TEXTS, "", "  "], "de")
    assert scores[:60].tolist() == [toxicity(text) for text in TEXTS]
    assert np.isnan(scores[60:]).all()
    assert service.attempts == collections.Counter(TEXTS)
    request = service.requests[0]
    assert request["languages"] == ["de"]
    assert set(request["requestedAttributes"]) == set(ATTRIBUTES)
    assert request["doNotStore"] is True


def test_the_key_is_in_a_header_only(service):
    scorer_of(service).score(TEXTS[:2], "en")
    assert all(headers["X-Goog-Api-Key"] == KEY for headers in service.headers)
    assert all(KEY not in request["path"] for request in service.requests)


@pytest.mark.parametrize("fault", [429, 500, 503, "truncated", "no score", "time-out", "closed"])
def test_passing_faults_are_tried_again(service, fault):
    service.fault = lambda text, attempt: fault if attempt <= 2 and text.endswith("1") else None
    texts = TEXTS[:12]
    patience = FAST._replace(timeout=1.5) if fault == "time-out" else FAST
    found = scorer_of(service, patience=patience).score(texts, "en")
    assert found.tolist() == [toxicity(text) for text in texts]
    assert service.answered == collections.Counter(texts)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (429, "HTTP 429"),
        (408, "HTTP 408"),
        (425, "HTTP 425"),
        (500, "HTTP 500"),
        ("truncated", "broken answer"),
        ("closed", "no connection"),
    ],
)
def test_lasting_faults_leave_a_text_missing_and_are_not_cached(service, tmp_path, fault, reason):
    service.fault = lambda text, attempt: fault if text == TEXTS[3] else None
    cached = CachedScorer(scorer_of(service), tmp_path / "scores")
    scores, reasons, _ = zip(*cached.results(TEXTS[:6], "en"), strict=True)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3]
    assert reason in reasons[3]
    assert "after 6 attempts" in reasons[3]
    with pytest.raises(UserError, match=f"no score of 1 of 6 texts in 'en' .*{reason}.* 6 attempts.*asks for them"):
        cached.score(TEXTS[:6], "en")
    service.fault = lambda text, attempt: None
    assert cached.score(TEXTS[:6], "en").tolist() == [toxicity(text) for text in TEXTS[:6]]
    assert service.answered == collections.Counter(TEXTS[:6])


def test_a_storm_of_faults_loses_nothing(service, tmp_path):
    rng = np.random.default_rng(0)
    faults = [429, 429, 503, "truncated", "closed", None]
    service.fault = lambda text, attempt: None if attempt > 4 else faults[int(rng.integers(len(faults)))]
    cached = CachedScorer(scorer_of(service), tmp_path / "scores")
    assert cached.score(TEXTS, "en").tolist() == [toxicity(text) for text in TEXTS]
    assert service.answered == collections.Counter(TEXTS)
    asked = service.attempts.total()
    assert cached.score(TEXTS, "en").tolist() == [toxicity(text) for text in TEXTS]
    assert service.attempts.total() == asked


@pytest.mark.parametrize(
    ("error_type", "reason"),
    [("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "language not supported"), ("COMMENT_TOO_LONG", "text too long"),
     ("SOMETHING_NEW", "refused (HTTP 400)")],
)  # fmt: skip
def test_a_refused_text_is_missing_with_its_reason_and_asked_for_once(service, tmp_path, error_type, reason):
    service.fault = lambda text, attempt: error_type if text == TEXTS[1] else None
    for _ in range(2):
        cached = CachedScorer(scorer_of(service), tmp_path / "scores")
        scores, reasons, _ = zip(*cached.results(TEXTS[:3], "en"), strict=True)
        assert np.isnan(scores).tolist() == [False, True, False]
        assert reasons == ("", reason, "")
    assert service.attempts == collections.Counter(TEXTS[:3])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (403, "refused the key"),
        (401, "refused the key"),
        (404, "not there any more"),
        (302, "HTTP 302, which is not about the text; check address"),
        (407, "HTTP 407, which is not about the text"),
        ("FAILED_PRECONDITION", "HTTP 400, which is not about the text"),
    ],
)
def test_what_concerns_all_texts_stops_at_once_without_showing_the_key(service, fault, message):
    service.fault = lambda text, attempt: fault
    with pytest.raises(UserError, match=message) as caught:
        scorer_of(service, concurrency=2).score(TEXTS, "en")
    assert KEY not in str(caught.value)
    assert service.attempts.total() <= 4


def test_what_was_answered_before_a_stop_is_kept(service, tmp_path):
    service.fault = lambda text, attempt: 403 if text == TEXTS[30] else None
    cached = CachedScorer(scorer_of(service, concurrency=1), tmp_path / "scores")
    with pytest.raises(UserError, match="refused the key"):
        cached.score(TEXTS, "en")
    service.fault = lambda text, attempt: None
    assert cached.score(TEXTS, "en").tolist() == [toxicity(text) for text in TEXTS]
    assert service.answered == collections.Counter(TEXTS)


def test_a_killed_run_asks_for_no_answered_text_again(service, tmp_path):
    path = tmp_path / "scores"
    script = """
        import sys
        from polydetox.scoring import CachedScorer
        from polydetox.scoring.perspective import PerspectiveScorer
        texts = [f"text number {number}" for number in range(60)]
        CachedScorer(PerspectiveScorer(sys.argv[1], rate=40.0, concurrency=2), sys.argv[2]).score(texts, "en")
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), service.address, path], env=environment)
    deadline = time.monotonic() + 60
    # The first burst is over; from here on the rate leaves 25 ms between two answers.
    while service.answered.total() < 45 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = service.answered.total()
    assert 45 <= before < 60
    scores = CachedScorer(scorer_of(service), path).score(TEXTS, "en")
    assert scores.tolist() == [toxicity(text) for text in TEXTS]
    # Only an answer that was on its way when the run was killed can have been lost, however slowly they are stored.
    assert sum(count > 1 for count in service.answered.values()) <= 2


def test_leaving_early_stops_the_requests(service):
    batches = scorer_of(service, rate=50.0, concurrency=2).batches([f"long {n}" for n in range(1000)], "en")
    next(batches)
    batches.close()
    asked = service.attempts.total()
    time.sleep(0.2)
    assert service.attempts.total() <= asked + 2
    assert asked < 200


def test_it_works_where_an_event_loop_is_running(service):
    import asyncio

    async def in_a_notebook():
        return scorer_of(service).score(TEXTS[:3], "en").tolist()

    assert asyncio.run(in_a_notebook()) == [toxicity(text) for text in TEXTS[:3]]


def test_the_rate_holds(service):
    scorer_of(service, rate=20.0).score(TEXTS[:40], "en")
    assert service.times[-1] - service.times[0] > 1.9


def test_the_service_says_how_long_to_wait(service):
    service.fault = lambda text, attempt: 429 if attempt == 1 else None
    service.retry_after = "0.4"
    scorer = scorer_of(service, patience=FAST._replace(longest_wait=10.0))
    assert scorer.score(TEXTS[:1], "en").tolist() == [toxicity(TEXTS[0])]
    first, second = service.times
    assert second - first >= 0.4


def test_answers_are_written_in_the_layout_of_stored_scores(service, tmp_path):
    file = tmp_path / "responses.jsonl"
    scorer_of(service, responses=file).score(TEXTS, "de")
    stored = StoredScorer(file)
    assert stored.languages == {"de"}
    assert stored.score(TEXTS, "de").tolist() == [toxicity(text) for text in TEXTS]


def test_after_its_end_it_fails_at_once_and_names_the_alternatives(monkeypatch):
    class Later(datetime.date):
        @classmethod
        def today(cls):
            return cls(2027, 1, 1)

    monkeypatch.setattr(perspective.datetime, "date", Later)
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    with pytest.raises(UserError, match=r"ended on 31 December 2026; use the scorer 'embedded'.*'stored:folder'"):
        get_scorer("perspective")


def test_without_a_key_it_says_which_variable(monkeypatch):
    class Now(datetime.date):
        @classmethod
        def today(cls):
            return cls(2026, 12, 31)

    monkeypatch.setattr(perspective.datetime, "date", Now)
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(UserError, match="set PERSPECTIVE_API_KEY"):
        PerspectiveScorer()


def test_another_server_can_stand_in_without_a_key_at_its_own_rate(service, monkeypatch):
    monkeypatch.setenv("PERSPECTIVE_API_RATE", "500")
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    scorer = PerspectiveScorer(service.address)
    assert scorer.score(TEXTS[:2], "en").tolist() == [toxicity(text) for text in TEXTS[:2]]
    assert scorer.revision != "v1alpha1-TOXICITY"
    for rate in ("fast", "0", "-1"):
        monkeypatch.setenv("PERSPECTIVE_API_RATE", rate)
        with pytest.raises(UserError, match=f"PERSPECTIVE_API_RATE={rate}"):
            PerspectiveScorer(service.address)
