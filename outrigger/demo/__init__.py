"""The demo: real processes that index real books while parts of them die."""
