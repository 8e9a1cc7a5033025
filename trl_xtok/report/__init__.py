"""Pictures: reads what a run wrote and draws it. Needs neither torch nor TRL."""
