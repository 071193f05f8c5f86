"""Generated stubs of proto/outrigger/v1; made by `make proto`, never edited."""
