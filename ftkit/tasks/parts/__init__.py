"""Parts that several tasks share; no tasks are looked for here."""
