"""One file per way to heal a pruned model. A healer module says:

SOURCE   the paper it comes from

and then either how output projections are solved anew without gradients, see edgeprune.closed_form:

SCOPES   {name: share}, each is tried; share(before_cut) -> float is how much of what is solved is changed in an output
         projection, 0 leaves it alone: before_cut is whether what comes right after the sub-layer was removed, or some of the
         sub-layer itself. Nothing before the first cut is asked for
BIASES   whether output projections may have biases
THINNER  (optional) True where models that `edgeprune prune --width` thinned can be healed so too
solve(seen, weight) -> Solution | None
         the change of one output projection, None to leave it alone; `seen` is what went into it and what is wanted, one per
         kind of text, see `_moments`; the walk through the model that gathers it is edgeprune.closed_form

or what is trained, and to which end, see edgeprune.training:

RECIPE   Recipe: how it is trained unless asked otherwise
OPTIONS  {name: value} of what else can be asked for; a value's type is the option's
JUDGE    "kl" or "loss": what must not get worse, on any kind of text held aside
prepare(student, whole, cut, options) -> Trainee
         what is trained of the student, a float32 torch causal LM beside the frozen whole model; see `_trainee`
REQUIRES (optional) a package of the extra `heal` that it needs
given_back(blocks, n_blocks, options) -> Blocks
         (optional) the block list with those removed sub-layers that come back to be trained

Files that begin with "_" are shared.
"""
