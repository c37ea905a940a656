"""The README.md of a pruned folder: front matter that the hub and gguf-py read, then what was done, for a person."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune import __version__
from edgeprune.blocks import is_portable
from edgeprune.errors import InputRejected
from edgeprune.healing import Healing
from edgeprune.types import ModelSpec, Plan
from edgeprune.width_plan import Widths, sizes

INHERITED = ("license", "license_name", "license_link", "language")


def model_card(
    folder: Path, spec: ModelSpec, plan: Plan, base_model: str, command: str, healed: Healing | None = None
) -> str:
    """README.md with front matter the hub and gguf-py read: base_model, tags, licence inherited from the base's card."""
    from huggingface_hub import ModelCardData

    kept = sum(spec.blocks[b.attn].attn.params for b in plan.blocks if b.attn is not None)
    kept += sum(spec.blocks[b.ffn].ffn.params for b in plan.blocks if b.ffn is not None)
    before = sum(b.attn.params + b.ffn.params for b in spec.blocks)
    data = ModelCardData(
        base_model=base_model, model_name=f"{spec.name}-pruned" if plan.removed else spec.name,
        library_name="transformers", pipeline_tag="text-generation", tags=["edgeprune", "pruned", "depth-pruning"],
        **inherited(folder),
    )  # fmt: skip
    lines = ["---", data.to_yaml(), "---", ""]
    lines += [f"# {spec.name}, {len(plan.blocks)} of {plan.n_blocks_whole} blocks", ""]
    lines += [
        f"Made from `{base_model}` by edgeprune {__version__}: **{plan.removed or 'nothing'}** removed, {_after(healed)}.",
        "",
    ]
    lines += ["| | whole | pruned |", "|---|---|---|"]
    lines += [f"| blocks | {plan.n_blocks_whole} | {len(plan.blocks)} |"]
    lines += [f"| parameters | {spec.params / 1e6:.1f} M | {(spec.params - before + kept) / 1e6:.1f} M |"]
    if plan.damage_perplexity is not None and plan.whole_perplexity is not None:
        lines += [
            f"| perplexity on the calibration text | {plan.whole_perplexity:.2f} | {plan.damage_perplexity:.2f} |"
        ]
    if plan.damage_kl is not None:
        lines += [f"| KL from the whole model, nats per token | 0 | {plan.damage_kl:.3f} |"]
    lines += _won(healed)
    cache = "" if plan.kv_type in ("f16", "f32") else f" with a {plan.kv_type} KV cache"
    chosen = (
        f"; what goes was chosen by {plan.metric}" if plan.metric else "; what goes was named" if plan.removed else ""
    )
    planned = f"Planned for {plan.device}, {plan.runtime} {plan.quant}{cache}{chosen}."
    lines += ["", planned, ""]
    lines += ["```", command, "```", ""]
    if not is_portable(plan.blocks):
        lines += [
            "Some blocks lack one half. Transformers has no such blocks, so this folder holds zeros in its place (same logits,",
            "no saving here); GGUF and ONNX exports made by edgeprune leave it out.",
            "",
        ]
    lines += [
        "`plan.json` lists every block and where its two halves come from. Quality falls with every block removed:"
    ]
    lines += ["evaluate on your own task before use.", ""]
    return "\n".join(lines)


def width_card(
    folder: Path, spec: ModelSpec, after: ModelSpec, widths: Widths, base_model: str, command: str,
    healed: Healing | None = None,
) -> str:  # fmt: skip
    """README.md of a model made thinner, as `model_card`. `after` is the thinner model as it is in its files."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base_model, model_name=f"{spec.name}-thinner", library_name="transformers",
        pipeline_tag="text-generation", tags=["edgeprune", "pruned", "width-pruning"], **inherited(folder),
    )  # fmt: skip
    lines = ["---", data.to_yaml(), "---", ""]
    lines += [f"# {spec.name}, thinner by {widths.method}", ""]
    asked = f"{widths.ratio:.1%} of its blocks' parameters were to go, widths in steps of {widths.rounding}"
    made = f"Made from `{base_model}` by edgeprune {__version__}: {asked}. {widths.source}"
    lines += [f"{made}; {_after(healed)}.", ""]
    lines += ["| | whole | thinner |", "|---|---|---|"]
    lines += [f"| parameters | {spec.params / 1e6:.1f} M | {after.params / 1e6:.1f} M |"]
    old, new = sizes(spec), sizes(after)
    lines += [f"| {what} | {old[what]} | {new[what]} |" for what in old]
    lines += _won(healed)
    lines += ["", "```", command, "```", ""]
    if any("-" in span for span in new.values()):
        lines += [
            "Layers differ in width (`per_layer_config` in config.json). Transformers reads that config and, as of 5.23, makes no",
            "model of it; edgeprune exports it to GGUF and ONNX, measures and evaluates it.",
            "",
        ]
    lines += [
        "`widths.json` lists what is kept of every layer. Quality falls with width: evaluate on your own task.",
        "",
    ]
    return "\n".join(lines)


def _won(healed: Healing | None) -> list[str]:
    if healed is None:
        return []
    rows = (
        f"| {k.text} | {k.perplexity_whole:.2f} | {k.perplexity_cut:.2f} | {k.perplexity_healed:.2f} |"
        for k in healed.kinds
    )
    return ["", "| perplexity on text held aside | whole | cut | healed |", "|---|---|---|---|", *rows]


def _after(healed: Healing | None) -> str:
    done = [step for step in healed.steps() if step.changed] if healed else []
    return ", ".join(f"then healed by {_how(step)}" for step in done) or "nothing retrained"


def _how(step: Healing) -> str:
    if step.trained is not None:
        added = f", {' '.join(step.trained.added)} given back" if step.trained.added else ""
        return f"{step.method}: trained on {step.trained.tokens} tokens{added}"
    n = len(step.changed)
    return f"{step.method}: {n} output projection{'s' if n > 1 else ''} solved anew, no gradients"


def inherited(folder: Path) -> dict[str, Any]:
    """Licence and language from the base model's card. Raises InputRejected when its front matter can't be read."""
    from huggingface_hub import metadata_load

    card = folder / "README.md"
    try:
        found = (metadata_load(card) or {}) if card.is_file() else {}
    except Exception as e:  # yaml's errors and huggingface_hub's own alike
        what = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise InputRejected(f"{card}: unusable front matter ({what}); correct or remove it") from None
    return {k: found[k] for k in INHERITED if found.get(k) is not None}


def front_of_gguf(metadata: dict[str, Any]) -> str:
    """A card with nothing but what a .gguf says of licence and language, for the folder made from it; "" for nothing."""
    from huggingface_hub import ModelCardData

    keys = {"license": "license", "license.name": "license_name", "license.link": "license_link"}
    said: dict[str, Any] = {v: metadata.get(f"general.{k}") for k, v in keys.items()}
    said["language"] = list(metadata.get("general.languages", ())) or None
    said = {k: v for k, v in said.items() if v is not None}
    return f"---\n{ModelCardData(**said).to_yaml()}\n---\n" if said else ""
