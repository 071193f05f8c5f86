"""The fleet's controller: registry, scheduler, admin API."""
