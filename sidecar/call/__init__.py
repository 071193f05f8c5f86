"""The call guard: every decision about a call, in layer order, sans-IO."""
