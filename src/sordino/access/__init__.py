"""Access rights: who may read what of whom, and whether a model's answers respect it.

`policy` decides, `generate` makes questions whose right answers come from the policy, `benchmark`
grades answers, and `guard` refuses an answer that holds a value the asker may not read.
"""
