"""From attack scores and counts to what they prove: lower bounds, curves, exposure, verdicts.

Several modules have an `epsilon_lower_bound`, so functions are imported from their modules.
"""
