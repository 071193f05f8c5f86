"""Where the controller keeps what must survive a restart."""
