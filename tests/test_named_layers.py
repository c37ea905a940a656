"""What to remove, said by hand: read as plans write it, and planned with the rest chosen."""

from __future__ import annotations

import random

import pytest
from _shapes import make_scores, make_spec

from edgeprune import devices, model
from edgeprune.blocks import describe_removed, from_sublayers, from_text, kept_sublayers, whole, without
from edgeprune.errors import InfeasibleBudget
from edgeprune.plan import make_plan
from edgeprune.types import Budget, Plan

SPEC = make_spec(n_blocks=12)


def test_what_plans_write_is_read_again():
    rng = random.Random(0)
    halves = kept_sublayers(whole(12))
    for _ in range(300):
        kept = from_sublayers(sorted(rng.sample(halves, rng.randrange(1, 24)), key=halves.index))
        assert without(describe_removed(kept, 12), 12) == kept


@pytest.mark.parametrize("text", ["3-5, 7; F8 A9", "layers 3-5, 7; F8 A9", "layer 3,4 5;7 f8 a9", "A3-5 F3-5 7 F8 A9"])
def test_ways_to_say_the_same(text):
    assert without(text, 12) == from_text("0-2 6 8:9 10-11")


@pytest.mark.parametrize(
    ("text", "said"),
    [("12", "outside the layers 0 to 11"), ("5-3", "neither a layer"), ("x", "neither a layer"), ("3..5", "neither"),
     ("0-11", "leaves nothing"), (";", "neither a layer"), ("-3", "neither a layer")],
)  # fmt: skip
def test_what_can_not_be_read_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        without(text, 12)


def test_the_rest_is_chosen_as_for_a_path_that_ends_there():
    """Of scores with exactly this step, and with a budget that the whole model misses in every quantisation."""
    device, cut = devices.load("rpi5-4gb"), without("4-8", 12)
    scores = make_scores(SPEC, [4, 5, 6, 7, 8])
    assert scores.path[-1].blocks == cut
    wide = make_plan(SPEC, scores, device, Budget(), blocks=cut)
    assert wide.blocks == cut and wide.damage_kl == scores.path[-1].kl and wide.metric == scores.metric
    least = min(a.prediction.memory_bytes for a in (*wide.front, *wide.alternatives))
    for blocks in (cut, None):  # only the last step fits
        made = make_plan(SPEC, scores, device, Budget(max_mem_bytes=least), blocks=blocks)
        assert made.blocks == cut and made.prediction.memory_bytes == least
    with pytest.raises(InfeasibleBudget) as e:
        make_plan(SPEC, scores, device, Budget(max_mem_bytes=least - 1), blocks=cut)
    assert e.value.nearest_plan.blocks == cut and e.value.nearest == {"max_mem_bytes": least}


def test_damage_that_no_scores_know_stays_unknown():
    cut = without("4-8", 12)
    for scores in (None, make_scores(SPEC, [1, 2])):
        made = make_plan(SPEC, scores, devices.load("rpi5-4gb"), Budget(), blocks=cut)
        assert made.blocks == cut and made.removed == "layers 4-8" and made.quant == "Q8_0"
        assert (made.damage_kl, made.damage_perplexity, made.expected_kl, made.metric) == (None, None, None, None)
        assert made.prediction.weights_bytes < made.prediction_whole.weights_bytes


def test_a_named_cut_from_the_command_line(tiny_folder, tmp_path, call):
    """Planned without scores, and pruned: as many blocks as are left."""
    folder, plan, out = tiny_folder("llama"), tmp_path / "plan.json", tmp_path / "pruned"
    asked = ["plan", folder, "--device", "rpi5-4gb", "--context", 64, "--prompt", 32, "--remove"]
    done = call(*asked, "1", "-o", plan)
    assert done.returncode == 0 and "damage: not measured; named by hand" in done.stdout
    assert Plan.from_json(plan.read_text()).removed == "layer 1"
    assert call("prune", folder, "--plan", plan, "-o", out).returncode == 0
    assert model.inspect(out).n_blocks == model.inspect(folder).n_blocks - 1 == 4
    assert "what goes was named." in (out / "README.md").read_text()
    done = call(*asked, "5")
    assert done.returncode == 2 and "--remove 5: 5 is outside the layers 0 to 4" in done.stderr
