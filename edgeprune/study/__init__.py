"""Depth against width: which removal is faster at equal size and at equal quality, where, by how much and why.

design    ratios × quantisations -> variants of equal parameters, and of equal file bytes; pure
make      a variant's file, generated or really pruned
measure   interleaved timings, one JSON line each, going on where they stopped
explain   the time of every variant by the terms of edgeprune.cost, fitted here; predicted against measured
project   the same terms on the device profiles, over contexts, model sizes and bandwidths: predictions
verdict   who wins, by what margin, how surely
page      Markdown and HTML
"""
