"""The typer application, how a verb joins it, and the few things verbs share."""

from __future__ import annotations

import importlib
import shlex
import sys
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from edgeprune import __version__, catalog
from edgeprune.cli._terminal import guarded, note, say
from edgeprune.errors import UsageError
from edgeprune.types import Budget

EXIT_CODES = (
    "Exit codes: 0 ok, 1 internal, 2 usage, 3 budget infeasible, 4 input rejected, 5 made for other weights, "
    "6 out of disk or memory, 130 interrupted."
)
# In which order --help lists them. A verb is a file of this folder; one that is not named here comes last.
ORDER = (
    "devices", "inspect", "sample", "score", "compare", "plan", "fit", "recipe", "prune", "heal", "export", "bench", "calibrate", "study",
    "evaluate", "chat", "report", "run",
)  # fmt: skip
_ALIKE: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_registered: dict[str, typer.Typer] = {}


def verb(example: str):
    """Register a function as a verb: errors in one line, an example in its help."""

    def register(fn: Any) -> Any:
        own = _registered[fn.__name__] = typer.Typer(**_ALIKE)
        own.command(fn.__name__, epilog=f"Example: {example}\n\n{EXIT_CODES}")(guarded(fn))
        return fn

    return register


class Verbs(TyperGroup):
    """Verbs by name, each imported when it is asked for; all of them where all are told: --help, a mistyped name."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = catalog.names("edgeprune.cli")
        return [*(v for v in ORDER if v in found), *(v for v in found if v not in ORDER)]

    def get_command(self, ctx: Any, name: str) -> Any:
        known = self.list_commands(ctx)
        for each in [name] if name in known else known:
            if each not in self.commands:
                importlib.import_module(f"edgeprune.cli.{each}")
                self.commands[each] = typer.main.get_command(_registered[each])
        return self.commands.get(name)


app = typer.Typer(
    name="edgeprune",
    cls=Verbs,
    help="Fit a language model to a device: plan, prune, export to GGUF and ONNX, measure, report.\n\n"
    "MODEL is a transformers folder, a .gguf file or a hub id (org/name or org/name@revision); for plan and fit also a "
    "well-known model's name such as llama-3.1-8b, of which no weights are needed.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    **_ALIKE,
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        say(f"edgeprune {__version__}")
        raise typer.Exit(0)


def command_line() -> str:
    """What the user typed, for the report and the model card."""
    return shlex.join(["edgeprune", *sys.argv[1:]])


def budget_of(**asked: Any) -> Budget:
    """A budget of the options given. Raises UsageError for an unknown objective, and a prompt longer than the context."""
    objectives = get_args(Budget.model_fields["objective"].annotation)
    if asked.get("objective", "quality") not in objectives:
        raise UsageError(f"no objective called {asked['objective']!r}; known: {', '.join(objectives)}")
    budget = Budget(**asked)
    by_default = budget.max_ttft_s is None and budget.prompt_tokens == Budget.model_fields["prompt_tokens"].default
    if budget.prompt_tokens > budget.context_tokens and not by_default:
        raise UsageError(
            f"a prompt of {budget.prompt_tokens} tokens does not fit a context of {budget.context_tokens}; "
            "give a larger --context or a shorter --prompt"
        )
    return budget


def device_profile(name: str) -> Any:
    """The profile a name or alias stands for, saying so when it could have meant others."""
    from edgeprune import devices as library

    profile = library.load(name)
    if profile.siblings and name != profile.id:
        note(f"{name} is taken as {profile.id} ({profile.name}); it could also mean {', '.join(profile.siblings)}")
    return profile
