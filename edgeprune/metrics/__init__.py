"""One file per way to rate removals. A metric module says:

SOURCE   the paper it comes from
and one of
rate(model, windows, work) -> list[float]
    one damage per block of a torch causal LM; blocks are removed one by one, lowest damage first
path(model, windows, max_steps, work) -> list[Blocks]
    block lists after 0, 1, 2, … removals (the first is the whole model), for criteria that don't rate single blocks
DAMAGE, children(kept) -> list[Kept]
    what may be kept after one more removal, for searches that rate again after each; DAMAGE is "kl" or "loss".
    With parents(kept, whole) -> list[Kept], all that `kept` is a child of, the search is refined, as far as `effort` says;
    without, it is greedy, as the published ones are

`windows` are token lists; `work.each` does the pieces, `work.progress(done, total)` is called as work goes on. A search
names neither model nor text: it runs through torch and through llama.cpp alike. Files that begin with "_" are shared.
"""
