"""The numerical equivalence check of a cut on a tiny random model."""
