"""Verifies cuts numerically on tiny random models: a cut model has to give the outputs of one with ablated units."""
