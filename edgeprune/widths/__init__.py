"""One file per way to make a model's blocks thinner. A module says:

SOURCE   the paper it comes from
and either
SPREAD   how it is published to spread the removal: "equal" (the same in every layer), "inner" (the same in every layer but
         the first and the last few) or "global" (one threshold for all, each layer its own widths)
COMPENSATES   whether the mean of what is removed becomes a bias of the output projections
rate(model, windows, progress) -> Ratings
         the importance of every group of heads and every channel of a whole torch causal LM, see `_ratings`
or
rotation(model, windows, progress) -> Tensor (d, d)
         orthogonal; its first columns span what is kept of the stream between the layers

`windows` are token lists, `progress(done, total)` is called as work goes on. What is then kept is edgeprune.width_plan's to
say, how it is written edgeprune.width's. Files that begin with "_" are shared.
"""
