"""The comparison of arms: statistics, verdicts, tables, plots and the report."""
