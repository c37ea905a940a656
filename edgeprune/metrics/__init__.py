"""One file per way to rate removals. A metric module says:

SOURCE                                   the paper it comes from
rate(model, windows, progress) -> list[float]
    one damage per block of a torch causal LM; the lowest is removed first. `windows` are token lists;
    `progress(done, total)` is called as work goes on.
"""
