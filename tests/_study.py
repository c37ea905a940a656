"""A study whose samples a machine of known rates gave."""

from __future__ import annotations

import random

from edgeprune import devices, known_models
from edgeprune._rates import find
from edgeprune.study import explain, kept, measure, project, run
from edgeprune.study.design import design, shape_of
from edgeprune.study.record import EqualQuality, Interval, Quality

LLAMACPP = [("llamacpp", q) for q in ("Q4_0", "Q4_K_M", "Q8_0")]


def tinyllama():
    return design("tinyllama-1.1b", shape_of(known_models.load("tinyllama-1.1b")), (0.2, 0.3), LLAMACPP)


def synthetic(folder):
    """(design, samples, cells, rates, study) of a machine that takes 10 % longer on odd widths."""
    found, host = tinyllama(), devices.load("intel-12-13-ddr5")
    rates = find(host, "llamacpp", "cpu", None, "Q4_K_M")
    samples = _samples(found, rates, slower=1.1)
    asked = measure.Protocol(threads=(2,))._asdict() | measure.Limits()._asdict()
    begun = kept.begin(folder, asked, host, found, {}, {}, "edgeprune study")
    made = run.conclude(begun, samples, ["left out: this"], profiles=project.chosen(["rpi5-8gb"]))
    return found, samples, made.cells, rates, made


def judged(study):
    """With qualities, as of a real model."""
    rows = [
        Quality(variant=m.variant, quant=m.quant, method=m.kind, healed=healed, perplexity=20 + i, kl=0.1 * i + 0.01, kl_stderr=0.02)
        for i, m in enumerate(study.models)
        if m.quant == "Q4_0"
        for healed in (False, *([True] if m.kind != "whole" else []))
    ]  # fmt: skip
    width = next(m.variant for m in study.models if m.kind == "width" and m.quant == "Q4_0")
    equal = EqualQuality(
        quant="Q4_0", width=width, method="flap", healed=False, kl=0.2, width_tok_per_s=14, depth_tok_per_s=15,
        ratio=Interval(low=1.0, middle=1.07, high=1.2), winner="depth",
    )  # fmt: skip
    return study.model_copy(update={"speed_only": False, "qualities": tuple(rows), "equal_quality": (equal,)})


def _samples(found, rates, slower=1.0, noise=0.004):
    rng = random.Random(1)
    out = []
    for group, (_, quant) in enumerate(LLAMACPP[:2]):
        for t in found.tasks:
            if t.quant != quant or t.variant.ratio not in (0.0, 0.2):
                continue
            for context in (0, 2048):
                seconds = explain.token(t.variant.spec, "llamacpp", quant, rates, context + 2).seconds
                seconds *= slower if t.variant.rounding == 1 else 1.0
                for k in range(5):
                    ns = tuple(round(1e9 * seconds * rng.gauss(1, noise)) for _ in range(4))
                    named = (t.variant.name, "llamacpp", quant, 2, "decode", context, k, group, ns, "cpu", "b")
                    out.append(measure.Sample(*named))
    return out
