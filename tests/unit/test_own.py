"""A reader's own preference pairs and evaluation prompts: what is read, what is skipped, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from hub import COMMIT, StubHub
from snakemake.api import SnakemakeApi
from snakemake.iocontainers import Namedlist, Wildcards

from notebook_cells import split_pairs
from polydetox import preflight
from polydetox.core.errors import DataNotFound, UserError
from polydetox.core.parameters import PairColumns
from polydetox.core.params import load_profile
from polydetox.data.pairs import UNPAIRED_COLUMNS, not_evaluated, own_pairs
from polydetox.data.prompts import languages_available, load_prompts, prompts_of_sets
from polydetox.scoring import get_scorer
from polydetox.workflow import load
from tiny import CHECKOUT

NAMES = PairColumns().model_dump()
ROWS = [{"prompt": f"Number {row} is", "chosen": "kind", "rejected": "rude"} for row in range(40)]
SINGLE = [{"prompt": f"Number {row} is", "completion": "kind" if row % 3 else "rude", "label": row % 3 > 0}
          for row in range(40)]  # fmt: skip


def lines(rows):
    return "\n".join(map(json.dumps, rows))


def said(*texts):
    """A conversation in which user and assistant take turns."""
    return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]


# --- pairs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_columns_of_any_name_in_any_kind_of_file(tmp_path, ending):
    file = tmp_path / f"pairs{ending}"
    table = pd.DataFrame(
        {"question": ["It is ", "He says"], "better": ["good", '"yes"'], "worse": ["bad", ", no"], "x": 1}
    )
    write = {".jsonl": lambda: file.write_text(lines(table.to_dict("records"))),
             ".json": lambda: file.write_text(json.dumps(table.to_dict("records"))),
             ".csv": lambda: table.to_csv(file, index=False), ".parquet": lambda: table.to_parquet(file)}  # fmt: skip
    write[ending]()
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    for data in (file, tmp_path):
        pairs, skipped = own_pairs(str(data), names)
        assert pairs.drop(columns="prompt_id").to_dict("records") == [
            {"prompt": "It is", "chosen": " good", "rejected": " bad"},
            {"prompt": "He says", "chosen": ' "yes"', "rejected": ", no"},
        ]
        assert not skipped and pairs["prompt_id"].is_unique


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_conversations_become_texts(tmp_path, ending):
    def read(rows, **names):
        file = tmp_path / f"pairs{ending}"
        pd.DataFrame(rows).to_parquet(file) if ending == ".parquet" else file.write_text(lines(rows))
        pairs, _ = own_pairs(str(file), NAMES | names)
        return pairs.drop(columns="prompt_id").to_dict("records")

    flat = {
        "prompt": "user: Hello\n\nassistant: Hi\n\nuser: And?\n\nassistant:",
        "chosen": " Fine.",
        "rejected": " No.",
    }
    before = said("Hello", "Hi", "And?")
    fine, no = said("", "Fine.")[1:], said("", "No.")[1:]
    whole = {"prompt": "Hello", "chosen": before + fine, "rejected": before + no}
    assert read([whole], prompt=None) == [flat], "the column prompt is not read"
    assert read([{"prompt": before, "chosen": fine, "rejected": no}]) == [flat]
    assert read([{"prompt": before, "chosen": "Fine.", "rejected": "No."}]) == [flat]
    assert read([{"prompt": "It is", "chosen": fine, "rejected": no}]) == [flat | {"prompt": "It is"}]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("labels", [[True, False], [1, 0], ["true", "False"]])
def test_unpaired_data_have_a_completion_and_its_label(tmp_path, ending, labels):
    file = tmp_path / f"single{ending}"
    table = pd.DataFrame({"question": ["It is ", "He says"], "answer": ["good", ", no"], "fine": labels})
    write = {".jsonl": lambda: file.write_text(lines(table.to_dict("records"))),
             ".csv": lambda: table.to_csv(file, index=False), ".parquet": lambda: table.to_parquet(file)}  # fmt: skip
    write[ending]()
    data, skipped = own_pairs(str(file), NAMES | {"prompt": "question", "completion": "answer", "label": "fine"})
    assert not skipped and data.columns.tolist() == UNPAIRED_COLUMNS and data["prompt_id"].is_unique
    assert data["label"].dtype == bool, "a notebook takes those that are not desirable with ~"
    assert data.drop(columns="prompt_id").values.tolist() == [["It is", " good", True], ["He says", ", no", False]]


def test_unpaired_conversations_become_texts(tmp_path):
    def read(rows, **names):
        (tmp_path / "single.jsonl").write_text(lines(rows))
        data, _ = own_pairs(str(tmp_path / "single.jsonl"), NAMES | {"label": "label"} | names)
        return data[UNPAIRED_COLUMNS[1:]].values.tolist()

    flat = [["user: Hello\n\nassistant:", " Hi.", True], ["user: Hello\n\nassistant:", " No.", False]]
    hi, no = said("Hello", "Hi."), said("Hello", "No.")
    assert read([{"completion": hi, "label": 1}, {"completion": no, "label": 0}], prompt=None) == flat
    assert flat == read([{"prompt": hi[:1], "completion": hi[1:], "label": True},
                         {"prompt": hi[:1], "completion": "No.", "label": False}])  # fmt: skip


def test_unpaired_rows_that_cannot_be_used_are_skipped_or_refused(tmp_path):
    file = tmp_path / "single.jsonl"

    def read(rows, **names):
        file.write_text(lines(rows))
        return own_pairs(str(file), NAMES | {"label": "label"} | names)

    data, skipped = read([*SINGLE, SINGLE[0], SINGLE[1] | {"completion": " "}, SINGLE[2] | {"label": 0.3}])
    assert len(data) == 40 and (skipped.blank, skipped.repeated) == (1, 1)
    (rejected,) = map(str, skipped.rejected)
    assert rejected.startswith("single.jsonl:43: field 'label' should be a valid boolean")
    for rows, names, words in [
        (SINGLE, {"label": "fine"}, r"single\.jsonl:1: field 'fine' is missing \(it has: prompt, completion, label\)"),
        (ROWS, {}, r"single\.jsonl:1: field 'completion' is missing \(it has: prompt, chosen, rejected\)"),
        (SINGLE[1:3], {}, r"single\.jsonl: field 'label': all 2 completions are desirable; training needs both kinds"),
        (SINGLE[:1], {}, "all 1 completions are undesirable"),
    ]:
        with pytest.raises(UserError, match=words):
            read(rows, **names)


def test_both_parts_of_unpaired_data_have_both_labels():
    data = pd.DataFrame(SINGLE)
    train, held_out = split_pairs(data, 0.2, seed=0)
    assert not set(train["prompt"]) & set(held_out["prompt"]) and (len(train), len(held_out)) == (32, 8)
    with pytest.raises(UserError, match=r"that 'held_out_share' holds out: all 1 completions are"):
        split_pairs(data, 0.02, seed=0)
    with pytest.raises(UserError, match=r"of the data to train on: all 1 completions are"):
        split_pairs(data.iloc[:2], 0.5, seed=0)


def test_rows_that_cannot_be_used_are_skipped_and_listed(tmp_path):
    rows = [*ROWS, ROWS[0], ROWS[1] | {"chosen": " kind "}, ROWS[2] | {"rejected": "kind"}, ROWS[3] | {"chosen": " "},
            ROWS[4] | {"rejected": 7}, ROWS[5] | {"chosen": [{"role": "user"}]}]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text(lines(rows))
    pairs, skipped = own_pairs(str(tmp_path / "pairs.jsonl"), NAMES)
    assert len(pairs) == 40 and (skipped.blank, skipped.repeated) == (1, 3)
    should = "should be a text, or a list of messages, each with a text as 'role' and as 'content'"
    assert [str(line) for line in skipped.rejected] == [
        f"pairs.jsonl:45: field 'rejected' {should}", f"pairs.jsonl:46: field 'chosen' {should}"]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "names", "words"),
    [
        ([{"promt": "a", "chosen": "b", "rejected": "c"}], {}, "did you mean 'promt'"),
        (ROWS, {"chosen": "better"}, r":1: field 'better' is missing \(it has: prompt, chosen, rejected\)"),
        (ROWS, {"prompt": None}, r":1: has no prompt: name its column, or give conversations"),
        ([{"chosen": said("a", "b"), "rejected": said("c", "d")}], {"prompt": None}, "differ before their last"),
        ([{"prompt": "a", "chosen": said("a", "b"), "rejected": said("a", "c")}], {}, "with 'columns: {prompt: null}'"),
        ([ROWS[0] | {"chosen": ""}], {}, "no row has all of 'prompt', 'chosen', 'rejected'"),
        ([], {}, "empty, it has no rows"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_refused_by_name(tmp_path, rows, names, words):
    file = tmp_path / "pairs.jsonl"
    file.write_text(lines(rows))
    with pytest.raises(UserError, match=words) as error:
        own_pairs(str(file), NAMES | names)
    assert str(file) in str(error.value)


def test_files_that_are_not_there_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no file of preference data there"):
        own_pairs(str(tmp_path / "nowhere.jsonl"), NAMES)
    for data in ("hub:owner/name", "hub:owner/name@main/x.jsonl", f"hub:owner/name@{COMMIT}"):
        with pytest.raises(UserError, match="with the 40 digits of a commit"):
            own_pairs(data, NAMES)


def test_pairs_whose_prompt_is_evaluated_are_skipped():
    prompts = ["It is", "it IS!", "system: s\n\nuser: It is\n\nassistant:", "First this.\n\nIt is.", "It is so", "That"]
    pairs = pd.DataFrame({"prompt": prompts, "chosen": " a", "rejected": " b"})
    assert not_evaluated(pairs, ["It is...", "?"])["prompt"].tolist() == ["It is so", "That"]
    assert len(not_evaluated(pairs, ["?", "no"])) == len(pairs)
    accents = pairs.assign(prompt=[f"cafe\u0301 {place}" for place in range(len(pairs))])
    assert len(not_evaluated(accents, ["Caf\u00e9 0"])) == len(pairs) - 1, "however an accent is coded"
    with pytest.raises(UserError, match=r"5 of 6 pairs have a prompt that is evaluated, .* fewer than two"):
        not_evaluated(pairs, ["It is", "that"])
    with pytest.raises(UserError, match="1 of 4 have a prompt that is evaluated; of the rest: all 3 completions"):
        not_evaluated(pd.DataFrame(SINGLE[:3] + SINGLE[4:5]), ["number 0 IS"])


def test_a_data_set_of_the_hub_is_read_at_its_commit(tmp_path):
    table = tmp_path / "t.parquet"
    pd.DataFrame(ROWS).to_parquet(table)
    files = {"data/train-0.parquet": table.read_bytes(), "data/test-0.parquet": b"not asked for", "README.md": b"nor"}
    code = ("import sys; from polydetox.core.errors import UserError; from polydetox.data.pairs import own_pairs\n"
            f"try: print(len(own_pairs(sys.argv[1], {NAMES})[0]))\n"
            "except UserError as error: sys.exit(str(error))")  # fmt: skip

    def read(hub, data, **changes):
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                                    "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, data], text=True, capture_output=True, timeout=120,
                              env=environment | changes)  # fmt: skip
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    with StubHub(files) as hub:
        data = f"hub:owner/name@{COMMIT}/data/train-*.parquet"
        assert read(hub, data) == "40"
        asked = [path for _, path, _, _ in hub.received]
        assert any(COMMIT in path and "train-0" in path for path in asked) and not any(
            "test-0" in path for path in asked
        )
        assert "owner/name: no file data/valid-*.parquet in this data set" in read(hub, data.replace("train", "valid"))
    assert read(hub, data) == "40", "of a server that is gone, what was downloaded stays"
    with StubHub(files, status=403) as hub:
        refused = read(hub, data, HF_HOME=str(tmp_path / "other"))
        assert refused.startswith("owner/name: is gated: accept its licence at")


def test_the_polite_pairs_of_the_placebo(tmp_path, monkeypatch):
    """Read by the path of the profile, from any folder; as long on both sides, and no side toxic."""
    monkeypatch.chdir(tmp_path)
    settings = load_profile("offline-full").pairs["polite"]
    pairs, skipped = own_pairs(settings["data"], NAMES)
    assert len(pairs) == 120 and not skipped, "none repeats another or has the same text on both sides"
    assert pairs["prompt"].is_unique and pairs["chosen"].is_unique and pairs["rejected"].is_unique
    lengths = pairs[["chosen", "rejected"]].apply(lambda side: side.str.len())
    assert lengths["chosen"].mean() == pytest.approx(lengths["rejected"].mean(), rel=0.05)
    for longer, shorter in (("chosen", "rejected"), ("rejected", "chosen")):
        assert (lengths[longer] > lengths[shorter]).mean() > 0.35
    evaluated = prompts_of_sets([{"source": "project", "languages": ["en"]}])
    assert len(not_evaluated(pairs, evaluated)) == len(pairs)
    for name in ("embedded", "lexicon"):
        scorer = get_scorer(name)
        chosen, rejected = (scorer.score(pairs[side].tolist(), "en") for side in ("chosen", "rejected"))
        assert (chosen < scorer.threshold).all() and (rejected < scorer.threshold).all(), name
        if name == "embedded":  # as the chapter says
            assert (rejected - chosen).mean() == pytest.approx(0.06, abs=0.005)
            # Three pairs are ties within what processors differ by; no other has its sides so near.
            assert (rejected - chosen > -0.002).sum() == 87


# --- prompts ----------------------------------------------------------------------------------------------------


def test_a_file_of_prompts_a_language_in_any_layout(tmp_path):
    (tmp_path / "en.txt").write_text("One \nTwo\n\nOne\n")
    (tmp_path / "de.jsonl").write_text(lines([{"frage": "Eins "}, {"frage": ""}, {"frage": "Zwei"}]))
    (tmp_path / "fr.csv").write_text("frage,x\nUn,1\nDeux,2\n")
    pd.DataFrame({"frage": ["Uno"]}).to_parquet(tmp_path / "es.parquet")
    read = {language: load_prompts("own", language, tmp_path, column="frage") for language in ("en", "de", "fr", "es")}
    texts = {language: table["prompt"].tolist() for language, (table, _) in read.items()}
    assert texts == {"en": ["One", "Two"], "de": ["Eins", "Zwei"], "fr": ["Un", "Deux"], "es": ["Uno"]}
    assert read["en"][1].repeated == 1 and read["de"][1].blank == 1
    assert read["en"][0]["prompt_id"].tolist() == ["own-000001", "own-000002"]
    assert read["en"][0]["gloss"].tolist() == ["One", "Two"] and read["de"][0]["gloss"].isna().all()
    assert load_prompts("own", "en", tmp_path, strip=False)[0]["prompt"].tolist() == ["One ", "Two"]
    assert load_prompts("own", "de", tmp_path, 1, "frage")[0]["prompt"].tolist() == ["Eins"]
    assert languages_available("own", ["de", "en", "it"], tmp_path) == ["de", "en"]
    sets = [
        {"source": "own", "folder": tmp_path, "limit": 1, "column": "frage", "strip": False, "languages": ["de", "fr"]}
    ]
    assert prompts_of_sets(sets) == ["Eins ", "Un"]


def test_prompts_that_cannot_be_used_are_refused_by_name(tmp_path):
    with pytest.raises(DataNotFound, match=r"no file of prompts in German; name one de\.txt, or de\.jsonl"):
        load_prompts("own", "de", tmp_path)
    (tmp_path / "de.jsonl").write_text(lines([{"text": "Eins"}]))
    with pytest.raises(UserError, match=r"de\.jsonl:1: field 'prompt' is missing \(it has: text\)"):
        load_prompts("own", "de", tmp_path)
    with pytest.raises(UserError, match=r"de\.jsonl:1: field 'text' should be a valid string"):
        (tmp_path / "de.jsonl").write_text(lines([{"text": 1}]))
        load_prompts("own", "de", tmp_path, column="text")
    (tmp_path / "de.txt").write_text("Eins")
    with pytest.raises(UserError, match=r"de\.txt and de\.jsonl: one file of prompts a language"):
        load_prompts("own", "de", tmp_path)


def test_white_space_at_the_end_of_published_prompts_stays_where_asked(tmp_path):
    (tmp_path / "RTP_LX_DE.json").write_text(lines([{"Prompt": "Eins "}, {"Prompt": "Zwei"}]))
    assert load_prompts("rtp-lx", "de", tmp_path)[0]["prompt"].tolist() == ["Eins", "Zwei"]
    assert load_prompts("rtp-lx", "de", tmp_path, strip=False)[0]["prompt"].tolist() == ["Eins ", "Zwei"]


# --- profiles ---------------------------------------------------------------------------------------------------


def rewrite(checkout, **changes):
    file = checkout / "params/profiles/tiny.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"mechanism": None} | changes))


def readme():
    """The examples of the README's section, one mapping."""
    (section,) = re.findall(
        r"## Your own pairs and prompts\n(.*?)\n## ", (CHECKOUT / "README.md").read_text(), re.DOTALL
    )
    examples = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)]
    assert len(examples) == 2
    return examples[0] | examples[1]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """What the README's examples read."""
    folder = tmp_path / "own"
    (folder / "prompts").mkdir(parents=True)
    rows = [{"question": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in ROWS]
    (folder / "pairs.jsonl").write_text(lines(rows))
    table = pd.DataFrame(SINGLE).rename(columns={"completion": "answer", "label": "liked"})
    table.to_csv(folder / "answers.csv", index=False)
    for language in ("en", "de", "ja"):
        (folder / f"prompts/{language}.jsonl").write_text(
            lines([{"question": f"{language} {row}"} for row in range(9)])
        )
    monkeypatch.setenv("MY_DATA", str(folder))
    return folder


def test_the_examples_of_the_readme_are_a_profile(checkout, data):
    example = readme()
    dialogues = example["pairs"].pop("dialogues")
    assert PairColumns.model_validate(dialogues["columns"]).prompt is None
    assert re.fullmatch(r"hub:owner/name@[0-9a-f]{40}/\S+", dialogues["data"])
    variants = {name: example["variants"][name] for name in ("dpo", "kto")}
    rewrite(checkout, **example | {"variants": variants})
    run = load("tiny")
    assert preflight.problems(run) == []
    pairs = run.resolved("pairs", model="tiny", kind="mine")
    assert (pairs["kind"], pairs["data"]) == ("own", "$MY_DATA/pairs.jsonl") and pairs["columns"][
        "prompt"
    ] == "question"
    (evaluated,) = pairs["evaluated"]
    assert evaluated == example["prompts"] | {"strip": True, "languages": ["de", "en", "ja"]}
    assert run.resolved("generate", model="tiny", variant="dpo")["prompts_column"] == "question"
    assert [name.rsplit("/", 1)[1] for name in run.prompt_files()] == ["de.jsonl", "en.jsonl", "ja.jsonl"]
    assert run.own_files("pairs", {"model": "tiny", "kind": "mine"}) == [str(data / "pairs.jsonl")]


def test_what_a_reader_changes_is_an_input_of_the_stages_that_read_it(checkout, data, monkeypatch):
    loaded, workflow = [], SnakemakeApi.workflow
    monkeypatch.setattr(SnakemakeApi, "workflow", lambda *_, **how: loaded.append(workflow(*_, **how)) or loaded[-1])
    for name in ("texts.csv", "head.json", "stored/x_en.jsonl", "sentences/de.txt", "weights/config.json",
                 "weights/.git/index", "weights/{x}"):  # fmt: skip
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    for name in ("tiny", "other"):
        model = {"title": name, "use": "path", "path": str(data / "weights"), "licence": "x"}
        published = {"tuned": {"path": "$MY_DATA/weights"}} if name == "other" else {}
        (checkout / f"params/models/{name}.yaml").write_text(yaml.safe_dump(model | published))
    control = {"algorithms": {"plain": {"algorithm": "plain"}}, "win_rate": {"judge": "owner/judge"},
               "jigsaw_classify": {"texts": "$MY_DATA/texts.csv"}}  # fmt: skip
    rewrite(
        checkout, models=["tiny", "other"], control=control, mechanism={"probe": {"texts": "$MY_DATA/texts.csv"}},
        evaluate={"scorer": "stored:$MY_DATA/stored", "second_scorer": "head:$MY_DATA/head.json",
                  "reference_model": "owner/reference", "second_reference_model": "owner/second"},
        agreement={"scorers": ["head:$MY_DATA/head.json", "use"]},
        alignment={"retrieval": {"folder": "$MY_DATA/sentences"}},
        more_prompts={"mine": {"source": "own", "folder": "$MY_DATA/prompts", "column": "question"}},
    )  # fmt: skip
    load("tiny")
    rules = {rule.name: rule for rule in loaded[0]._workflow.rules}
    prompts = [f"prompts/{language}.jsonl" for language in ("de", "en", "ja")]
    for name, files, wildcards in [
        ("checkpoint", ["weights/config.json"], {}), ("trim", prompts, {}),
        ("score", ["head.json", "stored/x_en.jsonl"], {"variant": "dpo", "set": ""}), ("agreement", ["head.json"], {}),
        ("probe", ["texts.csv"], {}), ("jigsaw_classify", ["texts.csv"], {"condition": "base"}),
        ("retrieval", ["sentences/de.txt"], {}),
        ("merge", ["weights/config.json"], {"model": "other", "variant": "published"}),
    ]:  # fmt: skip
        found = rules[name].expand_input(Wildcards(fromdict={"model": "tiny"} | wildcards))[0]
        mine = [str(file) for file in found if str(file).startswith(str(data))]
        assert sorted(mine) == [str(data / file) for file in files], name
    for name, others, wildcards in [
        ("score", ["owner/reference", "owner/second"], {"variant": "dpo", "set": ""}),
        ("win_rate", ["owner/judge"], {}),
    ]:
        of = Wildcards(fromdict={"model": "tiny"} | wildcards)
        given, *_ = rules[name].expand_params(of, rules[name].expand_input(of)[0], Namedlist(), None)
        assert [source["hub"] for source in json.loads(given.source)] == [None, *others]


def test_what_is_wrong_with_own_data_is_found_before_a_run(checkout, data, monkeypatch):
    example = readme() | {"variants": {"dpo": {"pairs": "mine"}}}
    example["pairs"].pop("dialogues")
    rewrite(checkout, **example)
    (data / "prompts/ja.jsonl").unlink()
    (data / "pairs.jsonl").write_text(lines([{"question": "EN 0!", "better": "a", "worse": "b"}]))
    found = preflight.problems(load("tiny"))
    assert any("no file of prompts in Japanese" in problem for problem in found), found
    (data / "prompts/ja.jsonl").write_text('{"question": "x"}')
    assert "1 of 1 pairs have a prompt that is evaluated" in "".join(preflight.problems(load("tiny")))
    (data / "pairs.jsonl").unlink()
    assert "pairs: mine: data '$MY_DATA/pairs.jsonl': no such folder or file" in "".join(
        preflight.problems(load("tiny"))
    )
    monkeypatch.delenv("MY_DATA")
    assert "the environment variable MY_DATA is not set" in "".join(preflight.problems(load("tiny")))


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ({"dpo": {"loss": "kto"}}, None),
        ({}, "'loss: sigmoid' needs pairs, and these data are unpaired (completion and label); set 'loss: kto', or"),
        ({"tuning": "profs", "ablation": "tuning"}, "'tuning: profs' needs pairs"),
        ({"dpo": {"loss": "kto", "labels": "shuffled"}}, "'labels: shuffled' needs pairs"),
        ({"dpo": {"loss": "kto", "inputs": "trl-0.8.6"}}, "'inputs: trl-0.8.6' needs pairs"),
    ],
)
def test_unpaired_data_are_for_a_loss_that_takes_them(checkout, data, variant, words):
    rows = [{"question": f"{row['prompt']}", "text": row["completion"], "good": row["label"]} for row in SINGLE]
    (data / "single.jsonl").write_text(lines(rows))
    pairs = {"single": {"data": "$MY_DATA/single.jsonl",
                        "columns": {"prompt": "question", "completion": "text", "label": "good"}}}  # fmt: skip
    variants = {"kto": {"pairs": "single", "dpo": {"loss": "kto"}}, "tried": {"pairs": "single"} | variant}
    rewrite(checkout, pairs=pairs, variants=variants)
    where = "params/profiles/tiny.yaml: variants: tried: pairs: single: "
    found = preflight.problems(load("tiny"))
    assert found == [] if words is None else len(found) == 1 and found[0].startswith(where + words), found


def test_a_prompt_leaves_room_for_its_completion(checkout, data):
    rewrite(checkout, variants={"dpo": {"pairs": "on-policy", "dpo": {"max_prompt_length": 32, "max_length": 32}}})
    (found,) = preflight.problems(load("tiny"))
    assert found == ("params/profiles/tiny.yaml: variants: dpo: 'max_prompt_length: 32' leaves nothing of "
                     "'max_length: 32' for a completion; lower the one or raise the other")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pairs": {"mine": {}}}, "pairs: mine: use one of on-policy, on-policy-matched, on-policy-use, rtp-lx, "),
        ({"pairs": {"rtp-lx": {"data": "x.jsonl"}}}, "pairs: rtp-lx: data: is for pairs of your own"),
        ({"pairs": {"mine": {"data": "x", "columns": {"promt": "a"}}}}, "unknown key 'promt'; did you mean 'prompt'"),
        ({"prompts": {"source": "own"}}, "prompts: folder: is needed for the source own"),
        ({"prompts": {"source": "project", "column": "x"}}, "column: is for 'source: own'"),
    ],
)
def test_what_a_profile_may_not_say_of_own_data(checkout, change, words):
    rewrite(checkout, **{"variants": {"dpo": {"pairs": "mine"}}} | change)
    with pytest.raises(UserError, match=re.escape(words)):
        load("tiny")
