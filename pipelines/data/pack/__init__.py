"""The pack stage: clean samples, encoded for one model and packed into sequences under two budgets."""
