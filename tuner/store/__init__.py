"""Where studies are kept: SQL is the truth, MLflow is a projection of it."""
