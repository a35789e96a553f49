"""What pays: which folds to make.

Takes a record, a cost model, and the constraints that lowering has found. Gives a plan: the folds that cost least, why
other operations stay, and what is no longer computed. It never changes a model and never reads its code: whether a fold
can be written back is decided in `rewrite`.
"""
