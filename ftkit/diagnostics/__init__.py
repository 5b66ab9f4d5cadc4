"""What `ftkit doctor` finds: defects of the data that training would not stop at, or would not explain. Imports no torch."""
