"""One file per way to heal a pruned model without gradients. A healer module says:

SOURCE   the paper it comes from
SCOPES   {name: fits}; fits(before_cut) -> bool says which output projections are solved anew, each scope is tried:
         before_cut is whether what comes right after the sub-layer was removed. Nothing before the first cut is asked for
BIASES   whether output projections may have biases
solve(moments, weight) -> Solution | None
         the change of one output projection, None to leave it alone

`moments` are one per kind of text, see `_moments`; the walk through the model that gathers them is edgeprune.closed_form.
Files that begin with "_" are shared.
"""
