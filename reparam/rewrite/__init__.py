"""The edits: a plan written into the user's own model.

Takes a plan and the record it was made from. Gives the same model with plain layers in the place of the folded
operations: modules are exchanged, and the forward of the smallest module around a fold is rewritten where that is not
enough. It changes only code that is proven to do the same for every input. It never decides what pays, and never
changes a model before every edit is known to be possible.
"""
