"""The TRL trainer; the only folder that imports trl."""
