"""What a conversion did, why it kept the rest, and what that saves: for people and for programs.

It takes the `Evidence` of a conversion and gives a `Report` of texts and numbers. `report` puts it together from the
operations of each fold (`steps`), their prices (`gains`), the ranges of their weights (`quantisation`), the reasons for
what was kept (`refusals`) and what each stage made of the model (`stages`). `render` writes it for people, `as_data`
for programs. It never changes a model, never decides what to fold, and never holds a tensor.
"""
