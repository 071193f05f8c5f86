"""Pure decisions about the fleet."""
