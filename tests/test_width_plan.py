"""What width plans keep: the published allocation by brute force, equal parameters, rounding, refusals. No torch."""

from __future__ import annotations

import functools
import random

import pytest

from edgeprune.blocks import whole
from edgeprune.catalog import load, names
from edgeprune.errors import UsageError
from edgeprune.known_models import load as known
from edgeprune.known_models import of_config
from edgeprune.types import Block
from edgeprune.width_plan import block_params, check, make_plan, params_left, ranges, ratio_of, sizes, to_ranges
from edgeprune.widths._ratings import Ratings

LLAMA_1B = dict(
    model_type="llama", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=11,
    num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5,
    tie_word_embeddings=False, hidden_act="silu",
)  # fmt: skip
SMOLLM2 = dict(
    LLAMA_1B, vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, tie_word_embeddings=True,
)  # fmt: skip


def spec_of(config, **changes):
    return of_config({**config, **changes}, "model")


def ratings_of(spec):
    return drawn(spec.n_blocks, spec.n_kv_heads, spec.intermediate_size)


@functools.cache
def drawn(n_blocks, *sizes):
    draw = random.Random(0).gauss
    return Ratings(*([[draw(0, 1) for _ in range(n)] for _ in range(n_blocks)] for n in sizes))


def widths(spec, plan):
    return [
        (len(ranges(b.groups, spec.n_kv_heads)), len(ranges(b.channels, spec.intermediate_size))) for b in plan.blocks
    ]


def test_ranges_come_back():
    for numbers in ([0], [3], [0, 1, 2], [0, 2, 3, 4, 9], list(range(40))):
        assert ranges(to_ranges(numbers), 40) == numbers
    assert ranges(None, 3) == [0, 1, 2] and to_ranges([5, 0, 1]) == "0-1 5"
    for bad in ("", "3-1", "1 1", "40", "x"):
        with pytest.raises(ValueError):
            ranges(bad, 40)


def test_flap_as_published_by_brute_force():
    """Sort all scores, weigh a group by its parameters over a channel's, cut where the sum is nearest to what is to stay."""
    spec = spec_of(SMOLLM2)
    ratings = ratings_of(spec)
    plan = make_plan(spec, "flap", ratings, 0.2, rounding=1, uniform=False)
    group, channel = 64 * 576 * (2 * 3 + 2), 3 * 576
    units = [(r, group) for layer in ratings.groups for r in layer]
    units += [(r, channel) for layer in ratings.channels for r in layer]
    units.sort(reverse=True)
    stay, total, best = 0.8 * block_params(spec), 30 * 2 * 576, None  # norms stay in any case
    for score, n in units:
        total += n
        if best is None or abs(total - stay) < best[0]:
            best = abs(total - stay), score
    kept = [
        [(i, k) for i, layer in enumerate(rated) for k, r in enumerate(layer) if r >= best[1]] for rated in ratings[:2]
    ]
    mine = [
        [(i, k) for i, b in enumerate(plan.blocks) for k in ranges(getattr(b, of), n)]
        for of, n in (("groups", 3), ("channels", 1536))
    ]
    # a layer keeps a group although all its groups are below the threshold, and others make up for it
    assert set(kept[0]) <= set(mine[0]) and len(set(mine[1]) ^ set(kept[1])) < 0.02 * len(kept[1])
    assert len(set(widths(spec, plan))) > 10


@pytest.mark.parametrize(
    "method", [m for m in names("edgeprune.widths") if hasattr(load("edgeprune.widths", m), "rate")]
)
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("rounding", [1, 32, 256])
def test_as_many_parameters_as_a_depth_plan(method, uniform, rounding):
    spec = spec_of(LLAMA_1B)
    depth = whole(11)[:4] + whole(11)[7:]  # 3 of 11
    left = spec.params - 3 * (spec.blocks[0].attn.params + spec.blocks[0].ffn.params)
    try:
        plan = make_plan(spec, method, ratings_of(spec), ratio_of(spec, depth), rounding, uniform)
    except UsageError as e:
        assert rounding == 256 and "nearest ratios are" in str(e)
        return
    assert abs(params_left(spec, plan) - left) <= 0.01 * left
    found = widths(spec, plan)
    assert all((c % rounding == 0 or c == 5632) and (k * 512 % rounding == 0) for k, c in found)
    if uniform:
        assert len(set(found)) == 1
    if method == "taylor" and not uniform:  # first four and last two of 32, in proportion
        assert [i for i, w in enumerate(found) if w == (4, 5632)] == [0, 10]


def test_the_lowest_rated_go():
    spec = spec_of(LLAMA_1B)
    ratings = ratings_of(spec)
    plan = make_plan(spec, "wanda_sp", ratings, 0.25)
    for block, groups, channels in zip(plan.blocks, ratings.groups, ratings.channels, strict=True):
        for kept, rated in ((block.groups, groups), (block.channels, channels)):
            stays = set(ranges(kept, len(rated)))
            assert min(rated[i] for i in stays) > max(
                [rated[i] for i in range(len(rated)) if i not in stays], default=-9
            )


def test_nothing_removed_is_the_identity():
    spec = spec_of(SMOLLM2)
    for method in names("edgeprune.widths"):
        plan = make_plan(spec, method, None if method == "slicegpt" else ratings_of(spec), 0.0, 256)
        assert all(b.groups is None and b.channels is None for b in plan.blocks)
        assert [Block(attn=b.attn, ffn=b.ffn) for b in plan.blocks] == [*whole(30)]
        rotates = method == "slicegpt"  # its rotated basis has a head of its own
        assert plan.hidden == (576 if rotates else None)
        assert params_left(spec, plan) == spec.params + rotates * 49152 * 576


def test_slicegpt_counts_the_head_it_unties():
    spec = spec_of(SMOLLM2)
    plan = make_plan(spec, "slicegpt", None, 0.2, rounding=8)
    d, matrices = plan.hidden, 30 * (2 * 576 + 2 * 192 + 3 * 1536)
    assert d % 8 == 0 and params_left(spec, plan) == d * (2 * 49152 + matrices + 61)
    assert abs(params_left(spec, plan) - (spec.params - 0.2 * block_params(spec))) < 0.01 * spec.params


def test_refusals_say_what_is_possible():
    spec = spec_of(SMOLLM2)
    ratings = ratings_of(spec)
    for ratio in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="--ratio .*from 0 to less than 1"):
            make_plan(spec, "flap", ratings, ratio)
    with pytest.raises(UsageError, match=r"nearest ratios are 0\.\d+ or 0\.\d+, or take a smaller --round") as found:
        make_plan(spec, "wanda_sp", ratings, 0.2, rounding=512)
    near = [float(x) for x in str(found.value).partition("are ")[2].partition(",")[0].split(" or ")]
    for ratio in near:  # what it says works, to three digits
        assert make_plan(spec, "wanda_sp", ratings, ratio, rounding=512).ratio == ratio
    with pytest.raises(UsageError, match="nearest ratios are 0.9"):
        make_plan(spec, "taylor", ratings, 0.999)
    with pytest.raises(UsageError, match="Did you mean 'wanda_sp'"):
        make_plan(spec, "wanda-sp", ratings, 0.2)


def test_heads_stay_where_transformers_has_no_config_for_fewer():
    """Llama's config wants heads that divide hidden_size; with biases there is no other model type to take."""
    spec = spec_of(LLAMA_1B, hidden_size=2560, num_attention_heads=20, num_key_value_heads=5, head_dim=128)
    plain = make_plan(spec, "wanda_sp", ratings_of(spec), 0.4)
    biased = make_plan(spec, "flap", ratings_of(spec), 0.4)
    assert widths(spec, plain)[0][0] == 3 and 2560 % (widths(spec, biased)[0][0] * 4) == 0
    assert sizes(spec)["groups"] == "5"


def test_a_stream_that_comes_near_no_ratio_is_refused_before_anything_is_rated():
    """Of SmolLM2's 576, in 32s: 416 and 384 are left at 16 and 24 %, and nothing between them."""
    spec = known("smollm2-135m")
    with pytest.raises(UsageError, match="nearest ratios are 0.159 or 0.244"):
        check("slicegpt", 0.2, 32, spec)
    for method, ratio in (("slicegpt", 0.244), ("flap", 0.2)):
        check(method, ratio, 32, spec)
