"""Run recipes on a model: check their order, do a dry run, carry out the stages, measure, save the result."""
