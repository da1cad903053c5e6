"""The tasks: data and model of each. A method never appears here."""
