"""lm-eval's tasks on whatever a runtime reads, with its own table and record kept as they are.

OUT/tasks/*.yaml                                 task definitions written here, for lm-eval's --include_path
OUT/SUBJECT-SHA256/results.json table.md         lm-eval's own
                   samples.jsonl request.json    every answer; what was asked
OUT/SUBJECT-SHA256.log                           answers so far, while it works
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import catalog
from edgeprune.bench import runtime_for
from edgeprune.catalog import did_you_mean
from edgeprune.chat import Chat
from edgeprune.errors import EdgepruneError, InputRejected, UsageError
from edgeprune.evaluation import TaskScore, TaskScores
from edgeprune.files import disk_errors, sha256_file, sha256_tree, staging, write_text
from edgeprune.work import Log, Work

Progress = Callable[[str, int, int], None]
# The seven sets of Shortened LLaMA (arXiv:2402.02834): a file FOLDER/NAME.jsonl in the Hub's columns, and the definition in
# lm-eval's own folder of tasks that it goes with. HellaSwag's is of 1000 rows, and its scores are named so.
ZEROSHOT = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag_1000": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "winogrande": "winogrande/default.yaml",
}
INSTALL = "tasks need lm-eval, which is not installed: pip install 'edgeprune[eval]'"


class Asked(NamedTuple):
    tasks: tuple[str, ...] = ()  # names, lm-eval's patterns such as mmlu_*, or "zeroshot"
    data: Path | None = None  # a folder with the JSONL files of ZEROSHOT
    include: Path | None = None  # a folder with task definitions; they may hold Python code, which runs
    limit: float | None = None  # documents of each task, or below 1 their fraction
    num_fewshot: int | None = None
    chat_template: bool = False
    context_tokens: int = 2048  # lm-eval's own where a model names none
    n_threads: int | None = None
    kv_type: str | None = None
    precise: bool = False
    generate: bool = False  # greedy text too, see edgeprune.behaviour.generation


class Suite(NamedTuple):
    """Tasks that lm-eval has found; none where none was asked for."""

    asked: Asked
    names: tuple[str, ...] = ()
    manager: Any = None  # lm_eval.tasks.TaskManager
    output: Path | None = None
    say: Callable[[str], None] = lambda _: None


@contextlib.contextmanager
def suite(asked: Asked, output: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Iterator[Suite]:
    """Raises UsageError without lm-eval or for a task it does not know, InputRejected for data that is not there."""
    if not asked.tasks:
        options = {"--task-data": asked.data, "--include-path": asked.include, "--limit": asked.limit}
        given = [k for k, v in (options | {"--num-fewshot": asked.num_fewshot}).items() if v is not None]
        if given:
            raise UsageError(f"{', '.join(given)}: these are for --tasks; name some")
        yield Suite(asked)
        return
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError(INSTALL) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    specs = [s for task in asked.tasks for s in (ZEROSHOT if task == "zeroshot" else [task])]
    if asked.data is None and (local := {"zeroshot", "hellaswag_1000"} & set(asked.tasks)):
        raise UsageError(
            f"{local.pop()} needs its data: --task-data FOLDER with {', '.join(f'{n}.jsonl' for n in ZEROSHOT)}"
        )
    if asked.include is not None and not asked.include.is_dir():
        raise UsageError(f"{asked.include} is not a folder; --include-path takes one with task definitions")
    with contextlib.ExitStack() as stack:
        folder = output / "tasks" if output else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if asked.data is not None:
            _write_definitions([s for s in specs if s in ZEROSHOT], asked.data, folder)
        include = [str(p) for p in (asked.include, asked.data and folder) if p]
        manager = TaskManager(include_path=include, include_defaults=False)
        if not all(_is_task(manager, s) for s in specs):
            say("reading lm-eval's list of tasks")
            manager = TaskManager(include_path=include)
        names = [name for s in specs for name in _matches(manager, s)]
        yield Suite(asked, tuple(dict.fromkeys(names)), manager, output, say)


def score(ready: Suite, name: str, path: Path, sha256: str, progress: Progress) -> TaskScores:
    """All tasks of the suite on one subject; with an output folder goes on where it was stopped, and keeps what lm-eval says.

    Raises UsageError for a context that is too short, InputRejected with lm-eval's reason where it can't run a task.
    """

    asked = ready.asked
    folder = ready.output and ready.output / f"{Path(name).name}-{sha256[:8]}"
    request = request_of(ready, name, path, sha256)
    if folder and (kept := _kept(folder, request)) is not None:
        return kept
    log_path = folder and folder.with_name(folder.name + ".log")
    options = dict(n_threads=asked.n_threads, precise=asked.precise, kv_type=asked.kv_type)
    with Chat(path, n_ctx=asked.context_tokens, **options) as chat, Log.opened(log_path, request, ready.say) as log:
        results, n_cut = _run(ready, chat, Work(log), name, sha256, progress)
        found = _scores(results, request, n_cut)
        if folder:
            _keep(folder, results, request, found)
    if log_path:
        log_path.unlink(missing_ok=True)
    return found


def request_of(ready: Suite, name: str, path: Path, sha256: str) -> dict[str, Any]:
    """All that scores depend on, as JSON gives it back."""
    from importlib.metadata import version

    asked, own = ready.asked, {}
    if asked.include:
        own["include"] = sha256_tree(asked.include)
    if asked.data:
        own |= {n: sha256_file(asked.data / f"{n}.jsonl") for n in ready.names if n in ZEROSHOT}
    runtime = runtime_for(path)
    found = {
        "subject": name, "sha256": sha256, "runtime": runtime,
        "build": catalog.load("edgeprune.runtimes", runtime).version(),
        "harness": f"lm-eval {version('lm-eval')}" if ready.names else None, "tasks": ready.names, "not_lm_evals_own": own,
        "limit": asked.limit, "num_fewshot": asked.num_fewshot, "chat_template": asked.chat_template,
        "context_tokens": asked.context_tokens, "kv_type": asked.kv_type, "precise": asked.precise,
    }  # fmt: skip
    return json.loads(json.dumps(found))


def _run(
    ready: Suite, chat: Chat, work: Work, name: str, sha256: str, progress: Progress
) -> tuple[dict[str, Any], int]:
    """lm-eval's record, and how many texts lost their beginning."""
    from lm_eval import evaluator

    from edgeprune.behaviour.harness_model import HarnessModel

    asked = ready.asked
    info = {"model": name, "model_sha": sha256, "runtime": chat.runtime}
    model = HarnessModel(
        chat, asked.context_tokens, work, lambda what, *of: progress(f"{name}: {what}", *of), info,
        lambda line: ready.say(f"{name}: {line}"),
    )  # fmt: skip
    evaluator.get_git_commit_hash = lambda: None  # of the folder one happens to be in; git would complain on stderr
    try:
        results = evaluator.simple_evaluate(
            model, tasks=list(ready.names), task_manager=ready.manager, limit=asked.limit, num_fewshot=asked.num_fewshot,
            apply_chat_template=asked.chat_template, fewshot_as_multiturn=asked.chat_template,
        )  # fmt: skip
    except (EdgepruneError, MemoryError):
        raise
    except Exception as e:  # tasks are anyone's code
        line = " ".join(str(e).split())[:300]
        hint = "; fetch its data once, or give a definition with data of your own by --include-path"
        raise InputRejected(
            f"lm-eval can't run {', '.join(ready.names)}: {type(e).__name__}: {line}{hint if isinstance(e, OSError) else ''}"
        ) from e
    return results, model.n_cut


def _scores(results: dict[str, Any], request: dict[str, Any], n_cut: int) -> TaskScores:
    found = []
    for task, values in results["results"].items():
        counts = results["n-samples"].get(task, {})
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in values.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            spread = values.get(f"{metric}_stderr,{kept}")
            found.append(
                TaskScore(
                    task=task,
                    metric=metric if kept == "none" else key,
                    value=value,
                    stderr=spread if isinstance(spread, (int, float)) else None,
                    higher_is_better=better.get(metric),
                    n_documents=counts.get("effective"),
                    n_documents_whole=counts.get("original"),
                    n_fewshot=results["n-shot"].get(task),
                )
            )
    return TaskScores(
        harness=request["harness"], context_tokens=request["context_tokens"], n_cut=n_cut,
        chat_template=request["chat_template"], scores=tuple(found),
    )  # fmt: skip


def _keep(folder: Path, results: dict[str, Any], request: dict[str, Any], found: TaskScores) -> None:
    from lm_eval.utils import handle_non_serializable, make_table

    def text(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, indent=indent, default=handle_non_serializable, ensure_ascii=False)

    rest = {k: v for k, v in results.items() if k != "samples"}
    tables = [make_table(results), make_table(results, "groups") if "groups" in results else ""]
    samples = [{"task": task, **sample} for task, of_task in results["samples"].items() for sample in of_task]
    files = {
        "results.json": text(rest, indent=2),
        "table.md": "\n".join(tables),
        "samples.jsonl": "".join(text(sample) + "\n" for sample in samples),
        "scores.json": found.to_json(),
        "request.json": text(request, indent=1),
    }
    with staging(folder, force=True) as partial:
        partial.mkdir()
        for file, content in files.items():
            (partial / file).write_text(content, encoding="utf-8")


def _kept(folder: Path, request: dict[str, Any]) -> TaskScores | None:
    """What an earlier run of the same request left."""
    try:
        if json.loads((folder / "request.json").read_text("utf-8")) == request:
            return TaskScores.from_json((folder / "scores.json").read_text("utf-8"))
    except (OSError, ValueError):
        pass
    return None


def _write_definitions(names: list[str], data: Path, folder: Path) -> None:
    """One for each name: lm-eval's own, with these files instead of a download."""
    import lm_eval.tasks

    stock = Path(lm_eval.tasks.__file__).parent
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        source = data / f"{name}.jsonl"
        if not source.is_file():
            raise InputRejected(f"{source} is not there; --task-data takes a folder with NAME.jsonl for each task")
        definition = {
            "include": str(stock / ZEROSHOT[name]),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(source.resolve())}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        }
        # JSON is YAML.
        write_text(folder / f"{name}.yaml", json.dumps(definition, indent=1, ensure_ascii=False) + "\n", force=True)


def _is_task(manager: Any, spec: str) -> bool:
    """Whether it is a single task, which needs no other definition."""
    entry = manager.task_index.get(spec)
    return entry is not None and entry.kind.name in ("TASK", "PY_TASK")


def _matches(manager: Any, spec: str) -> list[str]:
    found = manager.match_tasks([spec])
    if not found:
        raise UsageError(
            f"no task called {spec!r}.{did_you_mean(spec, manager.all_tasks)} `lm-eval ls tasks` lists all."
        )
    return found
