"""What a run may record beside tests/_report_records.py: fewer bits, depths, healing, tasks and text. Fixture values."""

from __future__ import annotations

from _report_records import TEXT, artifacts, measurements, predictions, qualities, sha

PLANNED, FEWER = "gguf/pruned-Q8_0.gguf", "whole/gguf/whole-Q6_K.gguf"


def with_fewer_bits(size: int, kl: float, mb: float = 140.0, windows: int = 40) -> dict:
    """The records with the whole model at Q6_K beside them."""
    a = next(a for a in artifacts() if a["path"] == PLANNED)
    m = next(m for m in measurements() if m["artifact"] == PLANNED)
    q = next(q for q in qualities() if q["subject"] == PLANNED)
    name = {"path": FEWER, "quant": "Q6_K", "bytes": size, "n_blocks": 30, "sha256": sha(FEWER)}
    of = {"artifact": FEWER, "artifact_sha256": sha(FEWER), "peak_rss_bytes": 50_000_000 + int(mb * 1e6)}
    got = {"subject": FEWER, "sha256": sha(FEWER), "kl": kl, "kl_stderr": kl / 40, "windows": windows}
    return {
        "artifacts": [*artifacts(), a | name],
        "measurements": [*measurements(), m | of],
        "quality": [*qualities(), q | got],
        "predictions": predictions() | {FEWER: predictions()[PLANNED]},
    }


def late(path: str, depth: int, slower: float, reps: int = 3) -> dict:
    m = next(m for m in measurements() if m["artifact"] == path)
    load = m["workload"] | {"n_prompt": 0, "n_gen": 32, "n_depth": depth, "repetitions": reps, "context_tokens": 2048}
    times = [int(t / 4 * slower) for t in m["decode_samples_ns"][:reps]]
    return m | {"workload": load, "prefill_samples_ns": [], "decode_samples_ns": times}


HEALING = {
    "method": "refit", "source": "a paper", "scope": "all", "text": TEXT | {"sha256": "9" * 64, "name": "healing text"},
    "fit_windows": 42, "precision": "float32", "trials": [], "seconds": 61.25, "versions": {},
    "kinds": [{"text": "prose", "windows": 2, "perplexity_whole": 15.0, "perplexity_cut": 25.0, "perplexity_healed": 20.0,
               "kl_cut": 0.5, "kl_healed": 0.4}],
    "changed": ["F12"],
}  # fmt: skip


def score(task: str, value: float, **changes) -> dict:
    base = {"task": task, "metric": "acc", "value": value, "stderr": 0.01, "higher_is_better": True, "n_documents": 100,
            "n_documents_whole": 1000, "n_fewshot": 0}  # fmt: skip
    return base | changes


def behaving(q: dict, accuracy: float, repetition: float) -> dict:
    """A quality record with two tasks and a continuation."""
    scores = [score("arc_easy", accuracy), score("piqa", 0.6, stderr=None)]
    said = {
        "prompt": "Why <b>is</b> the sky blue?",
        "text": "Because.\nSo",
        "n_tokens": 3,
        "ended": True,
        "repetition": None,
    }
    match = {"task": "recall", "n_correct": 3, "n_questions": 4}
    tasks = {"harness": "lm-eval 0.4.13", "context_tokens": 2048, "n_cut": 1, "chat_template": False, "scores": scores}
    generation = {"max_tokens": 64, "chat_template": True, "continuations": [said], "repetition": repetition, "distinct_2": 0.5,
                  "exact_match": [match], "seed": 0}  # fmt: skip
    return q | {"tasks": tasks, "generation": generation}
