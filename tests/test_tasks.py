"""lm-eval on every runtime: against its own `hf` model, and against a few lines of transformers."""

from __future__ import annotations

import functools
import json
import sys

import pytest
from _exported import in_every_runtime

from edgeprune.behaviour import tasks
from edgeprune.errors import InputRejected, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = "the quick brown fox jumps over the lazy dog and then the other one".split()


def quiet(*_):
    pass


def test_without_the_extra_it_says_how_to_get_it(tiny_folder, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    done = call("evaluate", tiny_folder("llama"), "--tasks", "arc_easy")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "pip install 'edgeprune[eval]'" in done.stderr


@pytest.fixture(scope="module")
def artifacts(tiny_folder, tmp_path_factory):
    return in_every_runtime(tiny_folder("llama"), tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def include(tmp_path_factory):
    """Three local tasks, one of each kind of request."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("include")
    docs = []
    for i in range(9):
        choices = [" ".join(WORDS[(i + k) % 13 :][: 1 + (i + k) % 3]) for k in range(3)]
        docs.append(
            {"q": " ".join(WORDS[i % 7 : i % 7 + 5]), "choices": choices, "label": i % 3, "text": " ".join(WORDS[i:])}
        )
    (folder / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "docs.jsonl")}},
        "test_split": "test",
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    made = {
        "choice": {
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "choices", "doc_to_target": "label",
            "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        },
        "written": {
            "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{text}}",
            "generation_kwargs": {"until": ["o"], "max_gen_toks": 9}, "metric_list": [{"metric": "exact_match", **mean}],
        },
        "rolling": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
        },
    }  # fmt: skip
    for name, task in made.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **common, **task}))
    return folder


def scored(path, output=None, progress=quiet, say=quiet, **asked):
    asked = {"context_tokens": 256, "precise": True, **asked}
    with tasks.suite(tasks.Asked(**asked), output, say) as ready:
        return tasks.score(ready, "it", path, "0" * 64, progress)


def stock(folder, include, names, **options):
    """What lm-eval itself says, with its `hf` model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        "hf", {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "max_length": 256}, tasks=names,
        task_manager=TaskManager(include_path=str(include), include_defaults=False), **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shots,chat", [(0, False), (2, True)])
def test_every_runtime_says_what_lm_evals_own_model_says(artifacts, include, tmp_path, shots, chat):
    names = ("choice", "written", "rolling")
    want = stock(
        artifacts["transformers"],
        include,
        list(names),
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    for runtime, path in artifacts.items():
        asked = dict(tasks=names, include=include, num_fewshot=shots, chat_template=chat)
        found = scored(path, tmp_path / runtime, **asked)
        assert found.n_cut == 0 and found.harness.startswith("lm-eval 0.4")
        for s in found.scores:
            value, spread = (
                want["results"][s.task][f"{s.metric},none"],
                want["results"][s.task][f"{s.metric}_stderr,none"],
            )
            assert s.value == pytest.approx(value, rel=1e-4), (runtime, s)
            assert s.stderr == (None if spread == "N/A" else pytest.approx(spread)), (runtime, s)
            assert (s.n_documents, s.n_documents_whole, s.n_fewshot) == (
                9,
                9,
                shots if s.task != "rolling" else s.n_fewshot,
            )
        assert len(found.scores) == 4
        (kept,) = (tmp_path / runtime).glob("it-*")
        theirs = json.loads((kept / "results.json").read_text())
        assert theirs["results"]["choice"]["acc,none"] == found.scores[0].value and theirs["lm_eval_version"]
        assert "|choice" in (kept / "table.md").read_text()
        samples = [json.loads(line) for line in (kept / "samples.jsonl").read_text().splitlines()]
        for task in names:
            mine = [s["resps"] for s in samples if s["task"] == task]
            other = json.loads(json.dumps([s["resps"] for s in want["samples"][task]]))
            assert len(mine) == len(other) == 9
            for a, b in zip(mine, other, strict=True):
                assert_same(a, b)


def assert_same(a, b):
    """Numbers within 1e-3, everything else alike; a cut character is shown by one side only."""
    if isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, str):
        assert a.rstrip("�") == b.rstrip("�")
    else:
        assert a == pytest.approx(b, abs=1e-3)


@pytest.mark.slow
def test_accuracy_and_likelihoods_are_a_few_lines_of_transformers(artifacts, include, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(artifacts["transformers"], dtype=torch.float32)
    tok = AutoTokenizer.from_pretrained(artifacts["transformers"])
    right, likelihoods = 0, []
    for doc in map(json.loads, (include / "docs.jsonl").read_text().splitlines()):
        rated = []
        for choice in doc["choices"]:
            n, ids = len(tok.encode(doc["q"])), tok.encode(f"{doc['q']} {choice}", return_tensors="pt")
            with torch.inference_mode():
                logp = model(ids).logits[0, n - 1 : -1].log_softmax(-1)
            rated.append(logp.gather(1, ids[0, n:, None]).sum().item())
        likelihoods += rated
        right += rated.index(max(rated)) == doc["label"]
    for runtime, path in artifacts.items():
        found = scored(path, tmp_path / runtime, tasks=("choice",), include=include)
        assert found.scores[0].value == right / 9
        (samples,) = (tmp_path / runtime).glob("it-*/samples.jsonl")
        mine = [r[0][0] for line in samples.read_text().splitlines() for r in json.loads(line)["resps"]]
        assert list(map(float, mine)) == pytest.approx(likelihoods, abs=1e-3), runtime


@pytest.mark.slow
def test_a_kill_costs_only_what_was_under_way(artifacts, include, tmp_path, monkeypatch):
    from edgeprune.behaviour import harness_model
    from edgeprune.chat import Chat

    monkeypatch.setattr(harness_model, "_SLICE", 6)
    said, rated = [], []
    asked = dict(tasks=("choice",), include=include, say=said.append)
    honest = Chat.log_likelihoods

    def counting(self, pairs, tick):
        rated.append(len(pairs))
        return honest(self, pairs, tick)

    def killed(what, done, total):
        if done > 12:
            raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "log_likelihoods", counting)
    path = artifacts["onnxruntime"]
    with pytest.raises(KeyboardInterrupt):
        scored(path, tmp_path, killed, **asked)
    assert [p.suffix for p in tmp_path.glob("it-*")] == [".log"]
    assert said[0] == "it: 27 answers to rate" and said[1].startswith("it: 6 answers are rated, the rest takes about ")
    said.clear()
    rated.clear()
    found = scored(path, tmp_path, **asked)
    assert any("going on where it stopped" in line and "holds 2 pieces" in line for line in said)
    assert sum(rated) < 27 and found == scored(path, tmp_path / "anew", **asked)
    assert [p.suffix for p in tmp_path.glob("it-*")] == [""]
    rated.clear()
    assert scored(path, tmp_path, **asked) == found and not rated
    assert scored(path, tmp_path, **asked, limit=4).scores[0].n_documents == 4 and rated


HUB = {  # a row of each set as the Hub has it, and the text that lm-eval's own definition makes of it
    "arc_challenge": ({"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}, "Question: Q?\nAnswer:"),
    "arc_easy": ({"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}, "Question: Q?\nAnswer:"),
    "boolq": ({"passage": "P.", "question": "is it", "label": 1}, "P.\nQuestion: is it?\nAnswer:"),
    "hellaswag_1000": (
        {"activity_label": "Run", "ctx_a": "One runs.", "ctx_b": "then", "endings": ["a", "b", "c", "d"], "label": "2"},
        "Run: One runs. Then",
    ),
    "openbookqa": ({"question_stem": "Why", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}, "Why"),
    "piqa": ({"goal": "G", "sol1": "a", "sol2": "b", "label": 0}, "Question: G\nAnswer:"),
    "winogrande": ({"sentence": "the _ ran away", "option1": "fox", "option2": "dog", "answer": "1"}, "the fox"),
}  # fmt: skip


@pytest.mark.slow
def test_the_zeroshot_sets_run_from_local_files(artifacts, tmp_path):
    pytest.importorskip("lm_eval")
    for name, (row, _) in HUB.items():
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 3)
    out = tmp_path / "out"
    found = scored(artifacts["onnxruntime"], out, tasks=("zeroshot",), data=tmp_path, limit=2)
    assert {s.task for s in found.scores} == set(HUB) == set(tasks.ZEROSHOT)
    assert {(s.n_documents, s.n_documents_whole) for s in found.scores} == {(2, 3)}
    (samples,) = out.glob("it-*/samples.jsonl")
    for sample in map(json.loads, samples.read_text().splitlines()):
        assert sample["arguments"][0][0] == HUB[sample["task"]][1]
    (tmp_path / "piqa.jsonl").unlink()
    with pytest.raises(InputRejected, match="piqa.jsonl is not there"):
        scored(artifacts["onnxruntime"], tasks=("zeroshot",), data=tmp_path)
    with pytest.raises(UsageError, match="--task-data FOLDER with arc_challenge.jsonl"):
        scored(artifacts["onnxruntime"], tasks=("zeroshot",))


@pytest.mark.slow
def test_wrong_input(artifacts, include, tmp_path, call, monkeypatch):
    import lm_eval.tasks

    own = lm_eval.tasks.TaskManager  # reading all of lm-eval's own definitions takes 20 seconds
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path, **_: own(include_path=include_path, include_defaults=False)
    )
    path = artifacts["onnxruntime"]
    with pytest.raises(UsageError, match="no task called 'choise'. Did you mean 'choice'?"):
        scored(path, tasks=("choise",), include=include)
    with pytest.raises(UsageError, match="not a folder"):
        scored(path, tasks=("choice",), include=include / "choice.yaml")
    with pytest.raises(UsageError, match="ask for more --context"):
        scored(path, tasks=("written",), include=include, context_tokens=9)
    assert (
        scored(path, tasks=("choice",), include=include, context_tokens=7).n_cut > 0
    )  # of 9 tokens the last is predicted
    broken = json.loads((include / "choice.yaml").read_text()) | {"doc_to_text": "{{ q.nothing.there }}"}
    (tmp_path / "choice.yaml").write_text(json.dumps(broken))
    with pytest.raises(InputRejected, match="lm-eval can't run choice: UndefinedError"):
        scored(path, tasks=("choice",), include=tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in path.iterdir():
        if file.name not in ("chat_template.jinja", "SHA256SUMS"):
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputRejected, match="no chat template"):
        scored(bare, tasks=("choice",), include=include, chat_template=True)
    for options, words in ((["--limit", "0"], "neither a number"), (["--limit", "5"], "are for --tasks")):
        done = call("evaluate", path, *options)
        assert done.returncode == 2 and words in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_the_verb(artifacts, include, tmp_path, call, monkeypatch):
    """Perplexity, tasks and text of two runtimes, in one table and one record that a report reads."""
    from edgeprune import behaviour
    from edgeprune.evaluation import Evaluation

    fewer = functools.partial(behaviour.generate, n_questions=5, max_tokens=16)
    monkeypatch.setattr(behaviour, "generate", fewer)
    paths = [artifacts["llamacpp"], artifacts["onnxruntime"]]
    words = ["evaluate", *paths, "--window", 32, "--windows", 1, "-t", 1, "--precise", "--generate"]
    words += ["--include-path", include, "--tasks", "choice"]
    done = call(*words, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "fatal" not in done.stderr  # lm-eval asks git for a hash, wherever it runs
    lines = done.stdout.splitlines()
    (row,) = (line for line in lines if line.startswith("choice") and "acc_norm" not in line)
    assert len(set(row.split("9 of 9")[1].split()[1::3])) == 1  # both have the same accuracy
    assert any(line.startswith("repetition, seq-rep-4") for line in lines) and "The capital of France is" in lines
    found = [Evaluation.model_validate(q) for q in json.loads((tmp_path / "out" / "quality.json").read_text())]
    assert [q.runtime for q in found] == ["llamacpp", "onnxruntime"]
    assert found[0].tasks.scores == found[1].tasks.scores and found[0].generation.exact_match[0].n_questions == 5
