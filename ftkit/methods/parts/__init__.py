"""What several methods share. Files here are no methods: the registry looks into the folder above only."""
