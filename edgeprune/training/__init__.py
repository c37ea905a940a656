"""Healing by training: weights of the pruned model learn from text or from the whole model, as a healer's module says.

heal_text  text -> examples to train on, and some held aside, by kind
retrain    a pruned folder, a healer, a budget -> the healed folder; judges before, meanwhile and after
device     where and in which types weights lie, whether there is room, what is computed twice for want of it
pace       a budget of tokens or minutes -> steps and their size; the rate at each step
loop       the steps: AdamW, looks at the text held aside, early stopping, the weights of the best look
batches    which examples each step takes, drawn from its number; as tensors
notebook   the checkpoint beside the output, from which a run that was killed goes on

What is trained, and to which end, is a file of edgeprune.healers; the writing is edgeprune.healed_folder's.
"""
