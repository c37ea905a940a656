"""What a run finds out about what it made: speed and memory, perplexity and KL, tasks and text."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from edgeprune import bench
from edgeprune.behaviour import Behaviour, behaviour
from edgeprune.behaviour.tasks import Suite, request_of
from edgeprune.evaluation import Evaluation
from edgeprune.run.facts import late_workloads
from edgeprune.run.job import Job, shas, write_all
from edgeprune.types import Artifact, Budget, Plan, Scores, Workload


def workload(base: Workload, budget: Budget, made: Plan) -> Workload:
    """The usual tests with the planned context and cache, so that measured memory is of what was planned."""
    n = budget.context_tokens
    sizes = {"n_prompt": min(base.n_prompt, n), "n_gen": min(base.n_gen, n), "context_tokens": n}
    return base.model_copy(update={**sizes, "kv_type": kv_type(made)})


def kv_type(made: Plan) -> str | None:
    return made.kv_type if made.runtime == "llamacpp" else None


def measured(job: Job, made: Plan, artifacts: list[Artifact]) -> None:
    """All in one step: numbers to be compared belong to one run. Late in the context, only what the plan is judged by."""
    load = workload(job.options.workload, made.budget, made)
    judged = [a for a in artifacts if a is artifacts[0] or a.path.startswith("whole/")]  # the planned file is the first
    late = late_workloads(job.options.depths, load)

    def work() -> None:
        found = bench.measure({a.path: job.out / a.path for a in artifacts}, load, progress=job.progress)
        for at_depth in late:
            found += bench.measure({a.path: job.out / a.path for a in judged}, at_depth, progress=job.progress)
        write_all(job.out / "measurements.json", found)

    inputs = [[(a.path, a.sha256) for a in artifacts], load.model_dump(), [w.n_depth for w in late]]
    job.journal.step("measure", inputs, [job.out / "measurements.json"], work)


def evaluated(job: Job, final: Path, made: Plan, artifacts: list[Artifact], scores: Scores, ready: Suite) -> None:
    """Writes quality.json. Tasks and text are asked of the whole model, the cut and the healed one, and of the planned file."""
    from edgeprune.evaluate import evaluate

    options = job.options
    folders = {"whole": job.base, "pruned": job.out / "pruned", final.name: final}
    subjects = folders | {a.path: job.out / a.path for a in artifacts}
    path = job.out / "perplexity.json"

    def work() -> None:
        found = evaluate(
            subjects, whole=job.base, files=options.texts, n_windows=options.windows, context_tokens=options.context,
            avoid=scores.text, kv_type=kv_type(made), progress=job.progress,
        )  # fmt: skip
        write_all(path, found)

    inputs = [job.spec.fingerprint, made.digest(), [a.sha256 for a in artifacts], options.windows, options.context]
    job.journal.step("evaluate", [*inputs, shas(options.texts)], [path], work)
    found = TypeAdapter(list[Evaluation]).validate_json(path.read_bytes())
    ready = ready._replace(asked=ready.asked._replace(kv_type=kv_type(made)))
    names = [*(folders if made.removed else ["whole"]), artifacts[0].path]
    asked = _asked(job, {name: subjects[name] for name in names}, found, ready)
    told = [q.model_copy(update=dict(asked[q.subject])) if q.subject in asked else q for q in found]
    write_all(job.out / "quality.json", told)


def _asked(job: Job, subjects: dict[str, Path], found: list[Evaluation], ready: Suite) -> dict[str, Behaviour]:
    if not ready.names and not ready.asked.generate:
        return {}
    shas_of = {q.subject: q.sha256 for q in found if q.subject in subjects}
    path = job.out / "behaviour.json"

    def work() -> None:
        write_all(path, {n: behaviour(ready, n, subjects[n], sha, job.progress) for n, sha in shas_of.items()})

    inputs = [ready.asked.generate, *(request_of(ready, n, subjects[n], sha) for n, sha in shas_of.items())]
    job.journal.step("ask tasks and text", inputs, [path], work)
    return TypeAdapter(dict[str, Behaviour]).validate_json(path.read_bytes())
