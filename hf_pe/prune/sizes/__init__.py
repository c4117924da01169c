"""Decide how large each axis becomes: allowed sizes, budgets, costs, and the search among candidate sizes."""
