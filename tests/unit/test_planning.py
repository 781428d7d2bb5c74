"""The plan of a run: schedules and costs against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import yaml

from polydetox import planning
from polydetox.errors import UserError
from polydetox.params import JIGSAW_CONDITIONS, control_parameters
from polydetox.planning import Cost, Costs, Device, Job, Rates, busy_seconds, critical_path, simulate
from tiny import CHECKOUT


def job(name, needs=(), gpus=1, **values):
    return Job(stage=name, name=name, gpus=gpus, needs=tuple(needs), **values)


# a takes 2 s; b (3 s) and c (1 s) wait for it; d (4 s) waits for both; e (5 s) stands alone.
JOBS = [job("a"), job("b", [0]), job("c", [0]), job("d", [1, 2]), job("e")]
SECONDS = [2.0, 3.0, 1.0, 4.0, 5.0]


def test_one_gpu_runs_jobs_one_after_the_other():
    schedule = simulate(JOBS, SECONDS, gpus=1, cores=8)
    assert schedule.seconds == 15.0
    # In order of what is ready: a, then b before e, since it comes first; d is ready after c.
    assert schedule.begins == [0.0, 2.0, 5.0, 6.0, 10.0]
    assert schedule.ends == [2.0, 5.0, 6.0, 10.0, 15.0]


def test_two_gpus_share_what_is_ready():
    schedule = simulate(JOBS, SECONDS, gpus=2, cores=8)
    # a and e begin; at 2 b takes a's place; at 5 both are free, and c is all there is; d waits for it.
    assert schedule.begins == [0.0, 2.0, 5.0, 6.0, 0.0]
    assert schedule.seconds == 10.0
    assert simulate(JOBS, SECONDS, gpus=3, cores=8).seconds == 9.0  # the longest chain: a, b, d


def test_no_number_of_gpus_is_faster_than_the_critical_path():
    path = critical_path(JOBS, SECONDS)
    assert [JOBS[number].name for number in path] == ["a", "b", "d"]
    assert sum(SECONDS[number] for number in path) == simulate(JOBS, SECONDS, gpus=99, cores=99).seconds == 9.0


def test_priority_goes_first_and_cores_are_shared_too():
    jobs = [job("low", gpus=0), job("high", gpus=0, priority=3), job("wide", gpus=0, threads=2)]
    schedule = simulate(jobs, [1.0, 1.0, 1.0], gpus=1, cores=1)
    assert schedule.begins == [1.0, 0.0, 2.0]  # one that asks for more cores than there are gets all
    assert simulate(jobs, [1.0, 1.0, 1.0], gpus=0, cores=2).begins == [0.0, 0.0, 1.0]
    # A job that asks for GPUs where there is none still runs.
    assert simulate([job("a", gpus=4)], [2.0], gpus=0, cores=1).seconds == 2.0


def test_a_stage_is_busy_while_one_of_its_jobs_runs():
    schedule = simulate(JOBS, SECONDS, gpus=2, cores=8)
    assert busy_seconds(schedule, [1, 2]) == 4.0  # 2 to 6, without a gap
    assert busy_seconds(schedule, [0, 4]) == 5.0  # 0 to 2 and 0 to 5
    assert busy_seconds(schedule, [0, 2]) == 3.0  # 0 to 2 and 5 to 6


def test_only_what_is_pending_is_planned():
    jobs = [job("a", pending=False), job("b", [0]), job("c", [0, 1])]
    assert [(one.name, one.needs) for one in planning.pending(jobs)] == [("b", ()), ("c", (0,))]


def test_the_seconds_of_a_job_are_its_work_and_what_is_paid_once():
    def number(value):
        return {"value": value, "source": "assumed"}

    device = Device(decode=number(10), forward=number(100), train=number(5), load=number(50), engine=number(7))
    rates = Rates.read(CHECKOUT / "params/rates.yaml").model_copy(
        update={"notebook": planning.Number(**number(1)), "download": planning.Number(**number(20))}
    )
    cost = Cost(decode=40, forward=200, train=10, loaded=100, downloaded=60, engines=2)
    # 4 + 2 + 2 of work, 2 of reading, 14 of engines, 3 of download, 1 of the notebook
    assert cost.seconds(device, rates) == 28.0
    assert cost.seconds(device, rates, share=2) == 24.0


@pytest.fixture
def rates(checkout):
    return Rates.read()


def test_each_stage_of_the_graph_has_its_cost(checkout, rates):
    jobs = planning.jobs_of("tiny", everything=True)
    counts = {stage: sum(one.stage == stage for one in jobs) for stage in {one.stage for one in jobs}}
    assert counts["generate"] == counts["score"] == counts["activations"] == 3  # variants
    assert counts["evaluate"] == 9  # 3 variants x 3 languages
    assert counts["dpo"] == counts["merge"] == 2 and counts["trim"] == counts["pairs"] == counts["probe"] == 1
    assert all(other < number for number, one in enumerate(jobs) for other in one.needs)
    costs = Costs("tiny", rates)
    size = planning.model_parameters("tiny")
    generate = next(one for one in jobs if one.stage == "generate")
    # 3 languages x 4 prompts x 3 continuations x 6 tokens
    assert costs.of(generate).decode == pytest.approx(216 * size)
    scored = costs.of(next(one for one in jobs if one.stage == "score"))
    scorers = rates.size("embedded") + rates.size("lexicon")
    judged = 216 + 12 * rates.prompt_tokens.value
    assert scored.forward == pytest.approx(216 * scorers + judged * size)
    dpo = next(one for one in jobs if one.name == "dpo tiny dpo")
    # 4 steps of 4 pairs, two sequences each
    assert costs.of(dpo).train == pytest.approx(4 * 4 * 2 * rates.pair_tokens.value * size)
    capability = costs.of(next(one for one in jobs if one.stage == "capability"))
    # 3 questions of 3 answers in 2 languages
    assert capability.forward == pytest.approx(2 * 3 * 3 * rates.answer_tokens.value * size)
    stages, seconds = planning.totals(jobs, costs)
    assert sum(len(stage.numbers) for stage in stages) == len(jobs) - 1  # all but the target
    assert all(
        math.isfinite(value) and value > 0 for value, one in zip(seconds, jobs, strict=True) if one.stage != "site"
    )
    table = planning.full_table("tiny", [1, 2], 2)
    assert "Critical path" in table and "dpo tiny dpo" in table
    assert planning.short_table("tiny", ["runs/tiny/tiny/trim/manifest.json"]).splitlines()[-1].split()[:2] == [
        "all",
        "2",
    ]


@pytest.fixture
def control(checkout, rates):
    """Costs of stages of attribute control, given what differs from the defaults, by stage and name."""
    profile = checkout / "params/profiles/tiny.yaml"
    profile.write_text(yaml.safe_dump(yaml.safe_load(profile.read_text()) | {"control": {
        "languages": ["en", "de"],
        "corpus": {"source": "model", "n": 5, "rows_per_domain": 20, "max_words": 10, "max_new_tokens": 6},
        "methods": {"plain": {"algorithm": "plain"}, "nado": {"algorithm": "nado"}},
        "attribute_eval": {"max_length": 8, "suites": {
            "knowledge": {"tasks": ["knowledge"], "shots": 2, "limit": 3}}},
        "jigsaw_classify": {"limit": 100, "train_batch_size": 10, "max_length": 50, "n": 2, "max_new_tokens": 4,
                            "regularise": {"iterations": 2, "samples": 7, "max_new_tokens": 5, "head_epochs": 3}},
    }}))  # fmt: skip
    costs = Costs("tiny", rates)

    def cost(stage, **identity):
        return costs.of(job(stage, parameters=control_parameters(stage, costs.profile, "tiny", **identity)))

    return cost


def test_the_corpus_of_attribute_control_is_sampled_and_scored(control, rates):
    drawn = planning._training_prompts() * 5 * 6
    cost = control("control_corpus")
    assert cost.decode == pytest.approx(drawn * planning.model_parameters("tiny"))
    assert cost.forward == pytest.approx((drawn + 20 * 10) * rates.size("embedded"))
    assert cost.engines == 1


def test_nothing_is_fine_tuned_where_a_head_constrains_decoding(control):
    assert control("regularise", method="nado").train == 0 < control("regularise", method="plain").train


def test_a_method_is_scored_and_reads_held_out_text_and_questions(control, rates):
    # 4 prompts x 3 continuations x 2 languages of 6 tokens; a tenth of 2 x 20 rows; 3 questions of 4 answers, each
    # with two examples.
    scored = 4 * 3 * 2 * 6 * rates.size("embedded")
    read = 4 * 8 + 3 * 4 * 3 * rates.answer_tokens.value
    assert control("attribute_eval", method="plain").forward == pytest.approx(
        scored + read * planning.model_parameters("tiny")
    )


def test_questions_of_this_project_are_counted_and_others_assumed(checkout, rates):
    tokens = Costs("tiny", rates)._answered
    tasks = {"own": {"tasks": ["everyday_en"], "shots": 0, "limit": None}}
    assert tokens(tasks) == 16 * 3 * rates.answer_tokens.value
    tasks = {
        "whole": {"tasks": ["arc_vi"], "shots": 0, "limit": None},
        "cut": {"tasks": ["arc_vi"], "shots": 1, "limit": 5},
    }
    assert tokens(tasks) == (rates.task_answers.value + 2 * 4 * 5) * rates.answer_tokens.value


def test_every_two_methods_are_judged_in_both_orders(control, rates):
    # base, plain and nado make three pairs; 4 prompts, one continuation of each method of 6 tokens
    tokens = rates.question_tokens.value + rates.prompt_tokens.value + 2 * 6
    assert control("win_rate").forward == pytest.approx(2 * 3 * 4 * tokens * planning.model_parameters("tiny"))


def test_training_on_labelled_comments_depends_on_the_condition(control, rates):
    size = planning.model_parameters("tiny")
    found = {name: control("jigsaw_classify", condition=name) for name in JIGSAW_CONDITIONS}
    sampled = 4 * 2 * 4  # 4 prompts, 2 continuations of 4 tokens
    # 80 of 100 comments of 50 tokens train: 8 steps of 10. A head is sampled for where the model is regularised.
    assert {name: cost.train / size for name, cost in found.items()} == pytest.approx(
        {"untouched": 0, "sft-lm": 4000, "regularised-lm": 4000, "sft-classification": 4000}
    )
    assert {name: cost.decode / size for name, cost in found.items()} == pytest.approx(
        {"untouched": sampled, "sft-lm": sampled, "regularised-lm": sampled + 2 * 7 * 5, "sft-classification": sampled}
    )
    prompting = 20 * (50 + rates.question_tokens.value) + 4 * rates.prompt_tokens.value
    scored = sampled * rates.size("embedded")
    assert found["untouched"].forward == pytest.approx((prompting + 100 * 50) * size + scored)
    assert found["sft-classification"].forward == pytest.approx((prompting + 20 * 50) * size + scored)
    assert found["sft-classification"].disk > found["sft-lm"].disk > found["untouched"].disk


def test_every_profile_can_be_planned(rates, monkeypatch):
    monkeypatch.setenv("POLYDETOX_ROOT", str(CHECKOUT))
    planning.paths.root.cache_clear()
    for profile in ("paper", "paper-control", "world", "offline-control"):
        jobs = planning.jobs_of(profile, everything=True)
        stages, _ = planning.totals(jobs, Costs(profile, rates))
        assert planning._not_estimated(stages) == ""
        assert all(stage.cpu_seconds > 0 and stage.disk > 0 for stage in stages)


def test_a_stage_of_which_nothing_is_known_is_named():
    stages = [planning.StageTotal(name) for name in ("dpo", "new_stage", "summary")]
    assert planning._not_estimated(stages) == "Not estimated, but for their notebooks: new_stage"
    assert planning._not_estimated(stages[:1]) == ""


def test_every_rate_says_where_it_comes_from(checkout, rates):
    told = planning.sources(rates).splitlines()
    assert len(told) > 20 and all(" measured" in line or " assumed" in line for line in told)
    file = checkout / "params/rates.yaml"
    file.write_text(file.read_text().replace("measured on one core", "someone said of one core", 1))
    with pytest.raises(UserError, match=r"rates.yaml: cpu.decode.source: begin with 'measured on"):
        Rates.read()


def test_an_unknown_size_is_named(rates):
    with pytest.raises(UserError, match="'owner/judge' is not listed"):
        rates.size("owner/judge")
    with pytest.raises(UserError, match="'parameters' is not given"):
        planning.model_parameters("owner/judge")
