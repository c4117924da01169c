"""Changes of basis before a cut: of the residual stream, and inside attention heads."""
