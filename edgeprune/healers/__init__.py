"""One file per way to heal a pruned model. A healer module says:

SOURCE   the paper it comes from

and then either how output projections are solved anew without gradients, see edgeprune.closed_form:

SCOPES   {name: Scope}, each is tried, and the one kept that does best on text held aside: how the change of one output
         projection is solved, and how much of it is made where, see `_moments`; the walk through the model that gathers what
         it takes is edgeprune.closed_form
BIASES   whether output projections may have biases
THINNER  (optional) True where models that `edgeprune prune --width` thinned can be healed so too

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
