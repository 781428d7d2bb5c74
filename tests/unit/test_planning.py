"""The plan of a run: costs and the critical path against values worked out by hand."""

from __future__ import annotations

import pytest
import yaml

from polydetox import planning
from polydetox.core import paths
from polydetox.core.errors import UserError
from polydetox.planning import Job, cost, critical_path
from tiny import CHECKOUT


def test_the_critical_path_is_the_longest_chain():
    # a takes 2 s; b (3 s) and c (1 s) wait for it; d (4 s) waits for both; e (5 s) stands alone.
    a, e = Job("a", "a"), Job("e", "e")
    b, c = Job("b", "b", needs=(a,)), Job("c", "c", needs=(a,))
    d = Job("d", "d", needs=(b, c))
    assert critical_path({a: 2.0, b: 3.0, c: 1.0, d: 4.0, e: 5.0}) == (9.0, ["a", "b", "d"])
    # What has run already is not waited for.
    assert critical_path({d: 4.0, e: 5.0}) == (5.0, ["e"]) and critical_path({}) == (0.0, [])


@pytest.fixture
def rates(checkout):
    return planning.read_rates()


def test_the_seconds_of_a_job_are_its_work_and_what_is_paid_once(checkout, rates):
    sums = {"decode": "n * 40", "forward": "200", "train": "10", "sampled": "True", "disk": "7 * n"}
    device = {"decode": 10.0, "forward": 100.0, "train": 5.0, "load": 50.0, "engine": 7.0}
    rates |= {"stages": {"s": sums}, "cpu": device, "notebook": 1.0, "notebook_bytes": 3.0}
    before = Job("before", "before", settings={"n": 2})
    # 8 + 2 + 2 of work, 7 of the engine, 1 of the notebook
    assert cost(Job("s", "s", needs=(before,)), rates) == (20.0, 17.0)
    assert cost(Job("s", "s", threads=2, needs=(before,)), rates) == (14.0, 17.0)
    # With a model, its weights are read once, two bytes each.
    size = planning.model_parameters("tiny")
    assert cost(Job("s", "s", settings={"n": 2, "model": "tiny"}), rates)[0] == pytest.approx(20.0 + 2 * size / 50)


def test_the_stages_of_the_graph_cost_what_they_compute(checkout, rates):
    jobs = planning.jobs_of("tiny")
    counts = {stage: sum(one.stage == stage for one in jobs) for stage in {one.stage for one in jobs}}
    assert counts["generate"] == counts["score"] == counts["activations"] == 3  # variants
    assert counts["evaluate"] == 9  # 3 variants x 3 languages
    assert counts["dpo"] == counts["merge"] == 2 and counts["trim"] == counts["pairs"] == counts["probe"] == 1
    assert all(jobs.index(other) < number for number, one in enumerate(jobs) for other in one.needs)

    # Of a device that does a unit a second and reads weights at once, seconds are work.
    unit = dict.fromkeys(("decode", "forward", "train"), 1.0) | {"load": float("inf"), "engine": 0.0}
    free = unit | dict.fromkeys(("decode", "forward", "train"), float("inf"))
    size = planning.model_parameters("tiny")

    def work(name: str, kind: str) -> float:
        one = next(job for job in jobs if job.name == name)
        return cost(one, rates | {"cpu": free | {kind: 1 / one.threads}, "notebook": 0.0})[0]

    # 3 languages x 4 prompts x 3 continuations x 6 tokens
    assert work("generate tiny base", "decode") == pytest.approx(216 * size)
    scorers = rates["parameters"]["embedded"] + rates["parameters"]["lexicon"]
    texts = 216 + 12 * rates["prompt_tokens"]
    assert work("score tiny dpo", "forward") == pytest.approx(216 * scorers + texts * size)
    # 4 steps of 4 pairs, two sequences each
    assert work("dpo tiny dpo", "train") == pytest.approx(4 * 4 * 2 * rates["pair_tokens"] * size)

    table = planning.table(jobs).splitlines()
    assert table[-2].split()[:2] == ["all", str(len(jobs))] and not any("(?)" in line for line in table)
    assert "Critical path" in table[-1] and "dpo tiny dpo" in table[-1]
    trim = planning.table(planning.jobs_of("tiny", ["runs/tiny/tiny/trim/manifest.json"])).splitlines()
    assert trim[-2].split()[:2] == ["all", "2"]


def test_answers_are_read_with_the_examples_before_them(checkout, rates):
    answers = planning._Names(Job("s", "s"), rates)["answers"]
    assert answers({"own": {"tasks": ["everyday_en"], "shots": 0, "limit": None}}) == rates["own_answers"]
    tasks = {
        "whole": {"tasks": ["arc_vi"], "shots": 0, "limit": None},
        "cut": {"tasks": ["arc_vi"], "shots": 1, "limit": 5},
    }
    assert answers(tasks) == rates["task_answers"] + 2 * 4 * 5


def test_every_profile_can_be_planned(rates, monkeypatch):
    monkeypatch.setenv("POLYDETOX_ROOT", str(CHECKOUT))
    paths.root.cache_clear()
    for profile in ("paper", "paper-control", "world", "offline-control"):
        jobs = planning.jobs_of(profile)
        assert all(seconds > 0 and disk > 0 for seconds, disk in (cost(job, rates) for job in jobs))
        assert "(?)" not in planning.table(jobs)


def test_a_stage_of_which_nothing_is_said_is_marked(checkout):
    assert "new_stage (?)" in planning.table([Job("new_stage", "new_stage m")])


def test_every_rate_says_where_it_comes_from(checkout, rates):
    file = checkout / "params/rates.yaml"
    file.write_text(file.read_text().replace("measured on one core", "someone said of one core", 1))
    with pytest.raises(UserError, match=r"rates.yaml: cpu.decode.source: begin with 'measured on"):
        planning.read_rates()


def test_what_is_not_known_is_named(rates):
    of = planning._Names(Job("s", "s"), rates)["of"]
    assert of("embedded", "", None) == rates["parameters"]["embedded"]
    with pytest.raises(UserError, match="'parameters' is not given"):
        of("owner/judge")
    rates["stages"] = yaml.safe_load("s: {decode: misspelt * 2}")
    with pytest.raises(UserError, match=r"stages\.s: 'misspelt' is neither a setting nor a rate"):
        cost(Job("s", "s"), rates)
