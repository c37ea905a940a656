"""One file per way to rate removals. A metric module says:

SOURCE   the paper it comes from
and one of
rate(model, windows, progress) -> list[float]
    one damage per block of a torch causal LM; blocks are removed one by one, lowest damage first
path(model, windows, max_steps, progress) -> list[Blocks]
    block lists after 0, 1, 2, … removals (the first is the whole model), for criteria that don't rate single blocks:
    spans, halves of blocks, searches that rate again after every removal

`windows` are token lists; `progress(done, total)` is called as work goes on. Files that begin with "_" are shared helpers.
"""
