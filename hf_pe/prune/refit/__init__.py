"""Closed-form corrections of the weights that remain after a cut."""
